"""Recovery: the dense parent distilled into the pruned model (docs/method.md).

Nothing in a step is left to chance: the order of the sequences is a function of the seed, dropout
is off, and a checkpoint holds all else that a step depends on. A run that is killed and started
again therefore ends in the bytes of one that was not.
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
from pruneflow.progress import track
from pruneflow.recovery.checkpoint import identity, read_checkpoint, write_checkpoint
from pruneflow.recovery.trainee import recomputed_blocks
from pruneflow.recovery.trainer import Trainer
from pruneflow.recovery.training_order import batches
from pruneflow.settings.recovery import RecoverySettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecoveryResult:
    """What a recovery made.

    Attributes:
        model: the student with the weights of `best_step`: plain, frozen, in its own types.
        steps: steps done.
        tokens: tokens trained on, repeated ones counted again.
        best_step: the step after which the held-out loss was lowest; 0 is before training.
        stopped_early: whether the held-out loss ended the run before its budget.
        history: a row for each look at the held-out loss: `step`, `train_loss` (mean since the row
            before; None at step 0), `validation_loss` (mean over the domains) and
            `validation_by_domain`, in nats a token.
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
    """Train the pruned model, in place, to predict what its dense parent predicts.

    A student in bfloat16 is trained through bfloat16 passes (autocast) on float32 weights, any
    other in its own type. The held-out loss is ``KL(teacher || student)`` at temperature 1.

    Args:
        student: the pruned model. After an error it is between two states: load it anew.
        teacher: the dense parent, on the same device; not changed.
        tokens: training blocks by domain, each ``[sequences, T]`` without padding, one T for all.
        validation: held-out blocks by domain, of any length.
        settings: budget, rates, method; a budget of 0 gives the student back as it is.
        weights: share of a domain relative to the others, 1 when absent; None for shares by number
            of sequences, so that each comes once before any comes twice.
        checkpoint_dir: a directory for checkpoints alone: a run goes on from the one it finds
            there. It stays at the end, for the caller to delete once the result is safe.
        batch_tokens: tokens in one forward and backward pass, at most (at least one sequence is
            taken). But for rounding the result does not depend on it.
        label: names the work on the progress bar, in logs and in errors.

    Raises:
        InputError: blocks, models or budget do not fit, or the checkpoint is of another run.
        DamagedArtifactError: the checkpoint is damaged.
        NonFiniteLossError: a loss is NaN or infinite; the last checkpoint stays as it is.
    """
    if settings.token_budget == 0:
        return RecoveryResult(student, 0, 0, 0, False, [])
    _check_blocks(tokens, validation, weights or {}, label)
    _check_models(student, teacher, [*tokens.items(), *validation.items()], label)
    if is_streamed(student):  # training changes all blocks at once
        place(student, str(student.device))
    step_tokens = settings.batch_sequences * next(iter(tokens.values())).shape[1]
    steps = settings.token_budget // step_tokens
    if steps == 0:
        raise InputError(
            f"{label}: token_budget {settings.token_budget} is below one step's {step_tokens} "
            "tokens: raise it, lower batch_sequences, or set it to 0"
        )
    run: dict[str, str] = {}
    found = None
    if checkpoint_dir is not None:
        data = {"training": tokens, "validation": validation}
        run = identity(student, teacher, data, weights, settings)
        found = read_checkpoint(checkpoint_dir, run)
    less_memory = recomputed_blocks(student) if settings.gradient_checkpointing else nullcontext()
    with _reproducible(student.device, settings.seed), less_memory:
        trainer = Trainer(
            student, teacher, settings, steps=steps, batch_tokens=batch_tokens, label=label
        )
        if found is None:
            trainer.evaluate(validation)
        else:
            trainer.restore(found)
            log.info("%s: goes on after step %d of %d", label, found.progress.step, steps)
        done = trainer.progress
        order = islice(batches(tokens, weights, settings), done.step, steps)
        for batch in track(order, label, total=steps - done.step):
            if trainer.stale:
                break
            trainer.step(batch)
            if done.step % settings.evaluate_every == 0 or done.step == steps:
                trainer.evaluate(validation)
            if checkpoint_dir is not None and done.step % settings.checkpoint_every == 0:
                write_checkpoint(checkpoint_dir, run, trainer.snapshot())
        model = trainer.finish()
    return RecoveryResult(
        model, done.step, done.step * step_tokens, done.best_step, done.step < steps, done.history
    )


def _check_blocks(
    tokens: dict[str, torch.Tensor],
    validation: dict[str, torch.Tensor],
    weights: dict[str, float],
    label: str,
) -> None:
    for kind, blocks in (("training", tokens), ("held-out", validation)):
        if not blocks:
            raise InputError(f"{label}: there are no {kind} blocks: give it at least one domain")
        for name, rows in blocks.items():
            if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] < 2:
                raise InputError(
                    f"{label}: domain {name} has no {kind} blocks [sequences, tokens] of two "
                    f"tokens or more (shape {list(rows.shape)}): give it more text"
                )
    lengths = sorted({rows.shape[1] for rows in tokens.values()})
    if len(lengths) > 1:
        raise InputError(
            f"{label}: training blocks are {lengths[0]} to {lengths[-1]} tokens long: "
            "cut all of them to one length"
        )
    for name, weight in weights.items():
        if name not in tokens:
            raise InputError(f"{label}: weights names {name}, which has no training blocks")
        if not 0 < weight < float("inf"):
            raise InputError(f"{label}: the weight of {name} is {weight:g}: it must be above 0")


def _check_models(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    blocks: list[tuple[str, torch.Tensor]],
    label: str,
) -> None:

    mine, theirs = (model.config.get_text_config().vocab_size for model in (student, teacher))
    if mine != theirs:
        raise InputError(
            f"{label}: the student knows {mine} tokens and the teacher {theirs}: the teacher must "
            "be the model that was pruned"
        )
    for name, rows in blocks:
        if int(rows.min()) < 0 or int(rows.max()) >= mine:
            raise InputError(
                f"{label}: domain {name} holds token {int(rows.max())}, but the models know {mine} "
                "tokens: make its blocks with their tokenizer"
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
            "load the teacher anew"
        )


@contextmanager
def _reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators, and leave them as they were after; choose repeatable kernels."""
    on_gpu = device.type == "cuda"
    # The backward passes of fused attention add in any order on a GPU, the plain one's does not.
    attention = sdpa_kernel(SDPBackend.MATH) if on_gpu else nullcontext()
    with torch.random.fork_rng([device] if on_gpu else []), attention:
        torch.manual_seed(seed)
        yield
