"""Training steps and evals of a recovery, and its state."""

import logging
import math
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from pruneflow.measure.perplexity import NonFiniteLossError
from pruneflow.recovery.checkpoint import Progress, Snapshot
from pruneflow.recovery.distillation_loss import divergence, loss_and_gradient
from pruneflow.recovery.trainee import adapters, full_weights
from pruneflow.recovery.training_order import learning_rate
from pruneflow.settings.recovery import RecoverySettings

log = logging.getLogger(__name__)

# AdamW: runs are short, so the second moment decays faster than by default.
BETAS = (0.9, 0.95)


class Trainer:
    """The student, its optimizer and the training progress.

    Args:
        student: the pruned model, prepared for training here.
        teacher: the dense parent.
        settings: method, learning rate and so on.
        steps: total steps, for the learning-rate schedule.
        batch_tokens: tokens in one forward and backward pass.
        label: name of the run in logs and errors.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        settings: RecoverySettings,
        *,
        steps: int,
        batch_tokens: int,
        label: str,
    ) -> None:
        self.progress = Progress()
        self._settings, self._steps = settings, steps
        self._batch_tokens, self._label = batch_tokens, label
        self._device = student.device
        self._mixed = student.dtype == torch.bfloat16  # before its weights become float32
        prepare = adapters if settings.method == "lora" else full_weights
        self._student, self._teacher = prepare(student, settings), teacher.eval()
        self._trained = self._student.parameters
        self._best: dict[str, torch.Tensor] = {}
        decays = {True: settings.weight_decay, False: 0.0}
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self._trained.values() if (p.ndim > 1) is is_matrix],
                    "weight_decay": decay,
                }
                for is_matrix, decay in decays.items()
            ],
            betas=BETAS,
        )

    @property
    def out_of_patience(self) -> bool:
        """Whether the held-out loss has not improved for `patience` evals."""
        return 0 < self._settings.patience <= self.progress.evals_since_best

    def step(self, batch: torch.Tensor) -> None:
        """Train on one batch, ``[sequences, T]``.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite.
        """
        progress, settings = self.progress, self._settings
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, self._steps, settings)
        loss = 0.0
        for ids in self._micro_batches(batch):
            teacher_logits = self._teacher_logits(ids)
            logits = self._logits(self._student.model, ids)
            share, gradient = loss_and_gradient(logits, teacher_logits, ids, len(batch), settings)
            logits.backward(gradient)
            loss += float(share)
        norm = float(clip_grad_norm_(self._trained.values(), settings.max_grad_norm))
        self._check(loss + norm, "training")
        self._optimizer.step()
        self._optimizer.zero_grad()
        progress.step += 1
        progress.losses.append(loss)

    def evaluate(self, validation: dict[str, torch.Tensor]) -> None:
        """Compute the held-out loss, and store the weights if they are the best so far.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        progress, by_domain = self.progress, {}
        for name, rows in validation.items():
            total = 0.0
            for ids in self._micro_batches(rows):
                with torch.inference_mode():
                    logits = self._logits(self._student.model, ids)
                    total += divergence(logits, self._teacher_logits(ids))
            by_domain[name] = total / rows.numel()
        loss = sum(by_domain.values()) / len(by_domain)
        self._check(loss, "held-out")
        if loss < progress.best_loss:
            progress.best_step, progress.best_loss = progress.step, loss
            progress.evals_since_best = 0
            self._best = {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in self._trained.items()
            }
        else:
            progress.evals_since_best += 1
        losses, progress.losses = progress.losses, []
        row = {
            "step": progress.step,
            "train_loss": sum(losses) / len(losses) if losses else None,
            "validation_loss": loss,
            "validation_by_domain": by_domain,
        }
        progress.history.append(row)
        log.info(
            "%s: step %d of %d, training loss %s, held-out loss %.4f (best %.4f at step %d)",
            self._label,
            progress.step,
            self._steps,
            "-" if row["train_loss"] is None else f"{row['train_loss']:.4f}",
            loss,
            progress.best_loss,
            progress.best_step,
        )

    def finish(self) -> PreTrainedModel:
        """The plain model with the best weights."""
        self._fill(self._best)
        return self._student.finish()

    def snapshot(self) -> Snapshot:
        """The complete training state."""
        moments = {}
        for name, parameter in self._trained.items():
            state = self._optimizer.state[parameter]
            moments[f"first/{name}"] = state["exp_avg"]
            moments[f"second/{name}"] = state["exp_avg_sq"]
        generators = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self._device)
        weights = {name: parameter.detach() for name, parameter in self._trained.items()}
        return Snapshot(self.progress, weights, moments, self._best, generators)

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot."""
        self.progress, self._best = snapshot.progress, snapshot.best
        self._fill(snapshot.weights)
        for name, parameter in self._trained.items():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(self.progress.step)),
                "exp_avg": snapshot.moments[f"first/{name}"].to(parameter.device),
                "exp_avg_sq": snapshot.moments[f"second/{name}"].to(parameter.device),
            }
        torch.set_rng_state(snapshot.generators["cpu"])
        if self._device.type == "cuda" and "cuda" in snapshot.generators:
            torch.cuda.set_rng_state(snapshot.generators["cuda"], self._device)

    def _fill(self, weights: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._trained.items():
            parameter.data.copy_(weights[name])

    def _micro_batches(self, rows: torch.Tensor) -> list[torch.Tensor]:
        parts = rows.split(max(1, self._batch_tokens // rows.shape[1]))
        return [part.to(self._device) for part in parts]

    def _teacher_logits(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self._logits(self._teacher, ids)

    def _logits(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._mixed):
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return logits

    def _check(self, value: float, which: str) -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"{self._label}: the {which} loss or its gradient is NaN or infinite after step "
                f"{self.progress.step} of {self._steps}: lower the learning rate, or compute in "
                "float32"
            )
