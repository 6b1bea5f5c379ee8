"""What `mlflow models serve` runs: a list of prompts in, a list of continuations out.

MLflow stores this file next to the model ("models from code") and runs it in environments where
pruneflow is not installed, so it uses only transformers.
"""

import json
from pathlib import Path

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext

MAX_NEW_TOKENS = 64


class PrunedModel(PythonModel):
    """A causal language model that continues prompts greedily."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and tokenizer: safetensors only.

        No code of the model directory is run, except with layout per_layer: its config.json names
        a model file that pruneflow wrote and that the model's digest covers.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        directory = context.artifacts["checkpoint"]
        config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
        trust = str(config.get("model_type")).startswith("pruned_")
        self.tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust)
        self.model = AutoModelForCausalLM.from_pretrained(
            directory, dtype="auto", use_safetensors=True, trust_remote_code=trust
        ).eval()
        self._check()

    def _check(self) -> None:
        """Fail while loading rather than serve nonsense."""
        import torch

        with torch.inference_mode():
            logits = self.model(**self.tokenizer("Hello", return_tensors="pt")).logits
        if not torch.isfinite(logits).all():
            raise ValueError("the model's logits are not finite: its weights are unusable")

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Continue each prompt; `params` may hold ``max_new_tokens``.

        If a prompt does not fit in the context, only its last tokens are used.

        Without type hints on purpose: MLflow would make the signature from them, and such a
        signature has no parameters.

        Args:
            context: what MLflow passes; not used.
            model_input: a list of prompts, or the table of one column that MLflow makes of it.
            params: checked against the signature by MLflow.
        """
        import torch

        prompts = model_input if isinstance(model_input, list) else model_input.iloc[:, 0]
        budget = int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS))
        context_length = getattr(self.model.config, "max_position_embeddings", None)
        if context_length is not None:
            budget = min(budget, context_length - 1)
        texts = []
        for prompt in prompts:
            ids = self.tokenizer(prompt)["input_ids"]
            if not ids:  # an empty prompt of a tokenizer that adds no beginning-of-text token
                bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
                ids = [eos if bos is None else bos]
            if context_length is not None:
                ids = ids[-(context_length - budget) :]
            inputs = torch.tensor([ids])
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=budget,
                    do_sample=False,
                    pad_token_id=self.tokenizer.eos_token_id,
                )
            texts.append(self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
        return texts


mlflow.models.set_model(PrunedModel())
