"""The folder mlflow/: it never shadows the package, and what it serves continues prompts."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FIND = "import importlib.util as u; print(u.find_spec('mlflow').origin)"


def test_importing_mlflow_from_the_repository_gives_the_real_one() -> None:
    """Of a process that is started there, and of this one, which has it on its path."""
    done = subprocess.run(
        [sys.executable, "-c", FIND], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    here = importlib.util.find_spec("mlflow")
    assert here is not None
    for found in (done.stdout.strip(), here.origin):
        assert found is not None and found.endswith("site-packages/mlflow/__init__.py")


@pytest.mark.filterwarnings("ignore")
def test_the_served_model_continues_prompts_and_obeys_its_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tasks.registry.versions import _signature

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<eos>": 2}, unk_token="b"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="b")
    tokenizer.save_pretrained(tmp_path / "dense")
    config = LlamaConfig(
        vocab_size=3,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=80,
        bos_token_id=2,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data.zero_()  # every next token is the first word
    model.save_pretrained(tmp_path / "dense")
    mlflow.pyfunc.save_model(
        str(tmp_path / "served"),
        python_model=str(REPOSITORY / "mlflow/served_model.py"),
        artifacts={"checkpoint": str(tmp_path / "dense")},
        pip_requirements=["transformers"],
        signature=_signature(),
    )
    served = mlflow.pyfunc.load_model(str(tmp_path / "served"))
    assert served.predict(["a b", "b"], params={"max_new_tokens": 3}) == ["a a a", "a a a"]
    assert len(served.predict(["b"])[0].split()) == 64
    # An empty prompt, and prompts and budgets longer than the context, leave the others unharmed.
    prompts = ["", "a b", " ".join("ab" * 100), "b"]
    assert served.predict(prompts, params={"max_new_tokens": 2}) == ["a a"] * 4
    assert len(served.predict(["b"], params={"max_new_tokens": 500})[0].split()) == 79
