"""Recovery: distillation of the dense teacher into the pruned student (docs/method.md).

Training is deterministic: the order of the sequences is a function of the seed, dropout is off, and
a checkpoint has all other state. An interrupted and resumed run gives the same bytes as a run
without interruption.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from pruneflow.compute.placement import is_streamed, place
from pruneflow.errors import InputError
from pruneflow.models.token_blocks import check_blocks
from pruneflow.progress import track
from pruneflow.recovery.checkpoint import identity, read_checkpoint, write_checkpoint
from pruneflow.recovery.trainee import gradient_checkpointing
from pruneflow.recovery.trainer import Trainer
from pruneflow.recovery.training_order import batches
from pruneflow.settings.recovery import RecoverySettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecoveryResult:
    """Result of `recover`.

    Attributes:
        model: the student with the weights of `best_step`, frozen, in its original data types.
        steps: number of training steps.
        tokens: number of training tokens over all epochs.
        best_step: the step with the lowest held-out loss; 0 is before training.
        stopped_early: whether early stopping ended training before the budget.
        history: one row per eval: `step`, `train_loss` (mean since the previous row; None at step
            0), `validation_loss` (mean over domains) and `validation_by_domain`, in nats per token.
    """

    model: PreTrainedModel
    steps: int
    tokens: int
    best_step: int
    stopped_early: bool
    history: list[dict[str, Any]]


def recover(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokens: dict[str, torch.Tensor],
    validation: dict[str, torch.Tensor],
    settings: RecoverySettings,
    *,
    weights: dict[str, float] | None = None,
    checkpoint_dir: Path | None = None,
    batch_tokens: int = 1024,
    label: str = "recovery",
) -> RecoveryResult:
    """Distil the dense teacher into the pruned student, in place.

    A student in bfloat16 is trained with autocast to bfloat16 on float32 weights, any other in its
    own data type. The held-out loss is ``KL(teacher || student)`` at temperature 1.

    Args:
        student: the pruned model. After an error its state is undefined: load it again.
        teacher: the dense parent, on the same device; not modified.
        tokens: training blocks by domain, each ``[sequences, T]`` without padding, with one T.
        validation: held-out blocks by domain, of any length.
        settings: budget, learning rate, method; with a budget of 0 the student is returned as is.
        weights: sampling weight of each domain, default 1; None weights domains by their number of
            sequences, so that epochs of all domains end together.
        checkpoint_dir: a directory for checkpoints only; training resumes from one found there. It
            is not deleted at the end: the caller deletes it once the result is saved.
        batch_tokens: maximum tokens in one forward and backward pass (at least one sequence). It
            affects the result only by rounding.
        label: name in progress bars, logs and errors.

    Raises:
        InputError: blocks, models or budget do not match, or the checkpoint is of another run.
        DamagedArtifactError: the checkpoint is damaged.
        NonFiniteLossError: a loss is NaN or infinite; the last checkpoint is kept.
    """
    if settings.token_budget == 0:
        return RecoveryResult(student, 0, 0, 0, False, [])
    _check_models(student, teacher, label)
    for kind, blocks in (("training", tokens), ("held-out", validation)):
        check_blocks(student, blocks, label, kind)
    _check_sampling(tokens, weights or {}, label)
    if is_streamed(student):  # training updates all blocks in one step
        place(student, str(student.device))
    step_tokens = settings.batch_sequences * next(iter(tokens.values())).shape[1]
    steps = settings.token_budget // step_tokens
    if steps == 0:
        raise InputError(
            f"{label}: token_budget {settings.token_budget} is less than one step's {step_tokens} "
            "tokens: raise it, lower batch_sequences, or set it to 0"
        )
    run: dict[str, str] = {}
    checkpoint = None
    if checkpoint_dir is not None:
        data = {"training": tokens, "validation": validation}
        run = identity(student, teacher, data, weights, settings)
        checkpoint = read_checkpoint(checkpoint_dir, run)
    with _reproducible(student, settings):
        trainer = Trainer(
            student, teacher, settings, steps=steps, batch_tokens=batch_tokens, label=label
        )
        if checkpoint is None:
            trainer.evaluate(validation)
        else:
            trainer.restore(checkpoint)
            log.info("%s: resumes from step %d of %d", label, checkpoint.progress.step, steps)
        progress = trainer.progress
        order = islice(batches(tokens, weights, settings), progress.step, steps)
        for batch in track(order, label, total=steps - progress.step):
            if trainer.out_of_patience:
                break
            trainer.step(batch)
            if progress.step % settings.evaluate_every == 0 or progress.step == steps:
                trainer.evaluate(validation)
            if checkpoint_dir is not None and progress.step % settings.checkpoint_every == 0:
                write_checkpoint(checkpoint_dir, run, trainer.snapshot())
        model = trainer.finish()
    return RecoveryResult(
        model=model,
        steps=progress.step,
        tokens=progress.step * step_tokens,
        best_step=progress.best_step,
        stopped_early=progress.step < steps,
        history=progress.history,
    )


def _check_sampling(tokens: dict[str, torch.Tensor], weights: dict[str, float], label: str) -> None:
    lengths = sorted({rows.shape[1] for rows in tokens.values()})
    if len(lengths) > 1:
        raise InputError(
            f"{label}: training blocks are {lengths[0]} to {lengths[-1]} tokens long: "
            "cut all of them to one length"
        )
    for name, weight in weights.items():
        if name not in tokens:
            raise InputError(
                f"{label}: weights names {name}, which has no training blocks: remove it"
            )
        if not 0 < weight < float("inf"):
            raise InputError(f"{label}: the weight of {name} is {weight:g}: it must be above 0")


def _check_models(student: PreTrainedModel, teacher: PreTrainedModel, label: str) -> None:
    size, other = (model.config.get_text_config().vocab_size for model in (student, teacher))
    if size != other:
        raise InputError(
            f"{label}: the student's vocabulary has {size} tokens and the teacher's {other}: the "
            "teacher must be the model that was pruned"
        )
    if student.device != teacher.device:
        raise InputError(
            f"{label}: the student is on {student.device} and the teacher on {teacher.device}: "
            "move them to one device"
        )
    if student.dtype == torch.float16:
        raise InputError(
            f"{label}: gradients underflow in float16: load the student in bfloat16 or float32"
        )
    shared = {p.data_ptr() for p in teacher.parameters()}
    if any(p.data_ptr() in shared for p in student.parameters()):
        raise InputError(
            f"{label}: student and teacher share weights, so training one would change the other: "
            "load the teacher again"
        )


@contextmanager
def _reproducible(student: PreTrainedModel, settings: RecoverySettings) -> Iterator[None]:
    """Seed torch's generators and use deterministic attention; restores the generators after."""
    device = student.device
    on_gpu = device.type == "cuda"
    # On a GPU the backward pass of fused attention sums in any order.
    attention = sdpa_kernel(SDPBackend.MATH) if on_gpu else nullcontext()
    recompute = (
        gradient_checkpointing(student) if settings.gradient_checkpointing else nullcontext()
    )
    with torch.random.fork_rng([device] if on_gpu else []), attention, recompute:
        torch.manual_seed(settings.seed)
        yield
