"""One round of a pruning schedule: take its calibration text, prune, measure, save, record.

The library (`prune`) and the DVC stage of a round call the same function; they differ in how a
round is measured and in where its directory is.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.artifacts import write_json
from pruneflow.models.digests import model_digest
from pruneflow.models.export import save
from pruneflow.models.loading import cast_parameters
from pruneflow.models.round_record import Drift, Health, RoundRecord, Validation, write_round_record
from pruneflow.models.structure import sizes_of
from pruneflow.models.token_blocks import check_blocks
from pruneflow.paths import DISAGREEMENT, STATISTICS
from pruneflow.pruning.domain_disagreement import disagreement
from pruneflow.pruning.rounds import RoundResult, prune_round
from pruneflow.pruning.schedule import next_weights
from pruneflow.settings.pruning import PruningSettings, Target
from pruneflow.tokens.calibration_set import CalibrationSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundPlan:
    """The plan of one round.

    Attributes:
        name: of the round, e.g. ``r1``.
        target: size that the model is to reach.
        settings: score, layout, units, widths, refit, feedback.
        calibration: the calibration set, whose mixture weighs the domains of the first round.
        dtype: data type of the weights that are stored.
        batch_tokens: tokens in one forward pass.
        backward_batch_tokens: tokens in one forward and backward pass.
    """

    name: str
    target: Target
    settings: PruningSettings
    calibration: CalibrationSet
    dtype: torch.dtype
    batch_tokens: int
    backward_batch_tokens: int


class RoundMeasures(NamedTuple):
    """Measurements of a round's model; None where nothing was measured."""

    validation: Validation | None = None
    drift: Drift | None = None
    health: Health | None = None


def cut_round(model: PreTrainedModel, parent: RoundRecord, plan: RoundPlan) -> RoundResult:
    """Prune the parent's model in place, together with all ranks.

    Raises:
        InputError: the model cannot read the calibration text, or the target cannot be reached.
    """
    weights = weights_after(parent, plan.calibration)
    blocks = plan.calibration.take(weights)
    check_blocks(model, blocks, "prune", "calibration")
    return prune_round(
        model,
        blocks,
        plan.target,
        parent.dense,
        plan.settings,
        weights=weights,
        stored_bytes=plan.dtype.itemsize,
        batch_tokens=plan.batch_tokens,
        backward_batch_tokens=plan.backward_batch_tokens,
        label=plan.name,
    )


def advance_round(
    model: PreTrainedModel,
    parent: RoundRecord,
    plan: RoundPlan,
    measure: Callable[[PreTrainedModel], RoundMeasures],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    directory: Path | None = None,
    run: str | None = None,
) -> tuple[PreTrainedModel, RoundRecord]:
    """Do one round, starting from its parent's model, which is cut in place.

    Args:
        model: the parent's model.
        parent: the parent's record.
        plan: the round.
        measure: measures the pruned model in the values that are stored; its health decides
            whether this round or the parent's is delivered.
        tokenizer: saved with the model; needed with `directory`.
        directory: an existing directory that gets model, statistics and ``round.json``; None to
            keep the round in memory.
        run: identifies a library run in the record.

    Returns:
        The pruned model, and the round's record.
    """
    compute_dtype = model.dtype
    result = cut_round(model, parent, plan)
    model = result.model
    cast_parameters(cast_parameters(model, plan.dtype), compute_dtype)  # the values that are stored
    measured = measure(model)
    digest = None
    if directory is not None:
        assert tokenizer is not None
        save(model, tokenizer, directory, plan.dtype)
        cast_parameters(model, compute_dtype)
        write_statistics(directory / STATISTICS, result, plan.settings.score)
        digest = model_digest(directory)
    record = _record(parent, plan, result, measured, digest, run)
    if record.reason:
        log.warning("%s: %s", plan.name, record.reason)
    if directory is not None:
        write_round_record(directory, record)
    return model, record


def weights_after(parent: RoundRecord, calibration: CalibrationSet) -> dict[str, float]:
    """Weights of the domains in the round after `parent`."""
    return parent.next_weights or calibration.mixture.weights


def _record(
    parent: RoundRecord,
    plan: RoundPlan,
    result: RoundResult,
    measured: RoundMeasures,
    digest: str | None,
    run: str | None,
) -> RoundRecord:
    weights = weights_after(parent, plan.calibration)
    following = None
    if measured.validation is not None:
        losses, feedback = measured.validation, plan.settings.domain_feedback
        following = next_weights(weights, losses.dense, losses.pruned, feedback)
    healthy = measured.health is None or measured.health.healthy
    delivered = plan.name if healthy else parent.delivered
    reason = None
    if measured.health is not None and not healthy:
        reason = (
            f"{measured.health.reason} The round is kept for inspection; {delivered} is delivered."
        )
    scores = result.scores[plan.settings.score]
    return RoundRecord(
        round=plan.name,
        status="done" if healthy else "unhealthy",
        reason=reason,
        digest=digest,
        delivered=delivered,
        delivered_digest=digest if healthy else parent.delivered_digest,
        dense=parent.dense,
        parent=parent.round,
        parent_digest=parent.digest,
        target=plan.target,
        achieved_ratio=result.achieved_ratio,
        **dict(sizes_of(result.model)),
        score=plan.settings.score,
        refit=plan.settings.refit,
        layout=plan.settings.layout,
        calibration_set=plan.calibration.digest,
        sequences={name: len(rows) for name, rows in plan.calibration.take(weights).items()},
        weights=weights,
        next_weights=following,
        calibration_losses=scores.losses,
        score_domains=scores.domains,
        notes=result.notes,
        validation=measured.validation,
        drift=measured.drift,
        health=measured.health,
        run=run,
    )


def write_statistics(directory: Path, result: RoundResult, score: str) -> None:
    """Write every score by domain, how the domains disagree, and which units stayed."""
    directory.mkdir()
    save_file(
        {
            f"{name}.{kind}.{layer:03d}": tensor.float().contiguous()
            for name, scores in result.scores.items()
            for kind, tensors in scores.units.items()
            for layer, tensor in enumerate(tensors)
        },
        directory / "scores.safetensors",
    )
    rows = {name: scores.domains for name, scores in result.scores.items()}
    write_json(directory / "scores.json", {"score": score, "rows": rows})
    write_json(directory / DISAGREEMENT, disagreement(result.scores[score]))
    kept = {
        "neurons": [units.tolist() for units in result.kept.neurons],
        "heads": [units.tolist() for units in result.kept.heads],
    }
    write_json(directory / "kept.json", kept)
