"""The stage of a round: parent directory and calibration set in, round directory out."""

import torch
from transformers import PreTrainedModel

from pruneflow.artifacts import staged_directory
from pruneflow.compute.ranks import joined
from pruneflow.errors import InputError
from pruneflow.judge.health import check_round
from pruneflow.measure.drift import compare_models
from pruneflow.measure.perplexity import NonFiniteLossError
from pruneflow.models.digests import tokenizer_digest
from pruneflow.models.loading import load_model
from pruneflow.models.round_record import (
    Health,
    RoundRecord,
    read_round_record,
    write_round_record,
)
from pruneflow.paths import CALIBRATION_SET, CHECKPOINTS
from pruneflow.pruning.advance import RoundMeasures, RoundPlan, advance_round, cut_round
from pruneflow.report.directory_card import write_card
from pruneflow.settings.pipeline import DENSE, PipelineSettings
from pruneflow.settings.pruning import Target
from pruneflow.tokens.calibration_set import CalibrationSet


def run_round(settings: PipelineSettings, name: str) -> None:
    """Do one round, check its health, and write it: data/checkpoints/NAME.

    The first rank writes; the others take their share of the calibration set. After a round that
    broke a health limit the schedule has ended: later rounds write only their record.
    """
    if name not in settings.rounds:
        raise InputError(
            f"there is no round {name} in configs/pipeline.yaml: use {', '.join(settings.rounds)}"
        )
    parent = read_round_record(CHECKPOINTS / settings.rounds[name].parent)
    target = Target(**settings.rounds[name].model_dump(exclude={"parent"}))
    if parent.status != "done":
        if joined().is_first:
            with staged_directory(CHECKPOINTS / name) as directory:
                write_round_record(directory, _skipped(name, parent, target))
        return
    source = CHECKPOINTS / parent.round
    calibration = CalibrationSet.load(CALIBRATION_SET, tokenizer_digest(source))
    model, tokenizer = load_model(source, settings.compute)
    plan = RoundPlan(
        name,
        target,
        settings.pruning,
        calibration,
        getattr(torch, settings.model.dtype),
        settings.compute.batch_tokens,
        settings.compute.backward_batch_tokens,
    )
    if not joined().is_first:
        cut_round(model, parent, plan)
        joined().leave()
        return

    def measure(pruned: PreTrainedModel) -> RoundMeasures:
        joined().leave()
        return measure_round(settings, name, calibration, pruned)

    with staged_directory(CHECKPOINTS / name) as directory:
        _, record = advance_round(
            model, parent, plan, measure, tokenizer=tokenizer, directory=directory
        )
        write_card(directory, record, settings.model)


def measure_round(
    settings: PipelineSettings, name: str, calibration: CalibrationSet, pruned: PreTrainedModel
) -> RoundMeasures:
    """Compare a round's model with the dense one on validation text, and check its health.

    If its loss is not finite, there is only a verdict.
    """
    dense, _ = load_model(CHECKPOINTS / DENSE, settings.compute)
    try:
        validation, drift = compare_models(
            dense,
            pruned,
            calibration.blocks["validation"],
            settings.compute.batch_tokens,
            f"{name} validation",
        )
    except NonFiniteLossError as error:
        reason = f"{str(error)[:1].upper()}{str(error)[1:]}."
        return RoundMeasures(health=Health(healthy=False, reasons=[reason], reason=reason))
    return RoundMeasures(validation, drift, check_round(validation, drift, settings.health))


def _skipped(name: str, parent: RoundRecord, target: Target) -> RoundRecord:
    return RoundRecord(
        round=name,
        status="skipped",
        reason=f"the schedule ended before it: {parent.round} is {parent.status}",
        delivered=parent.delivered,
        delivered_digest=parent.delivered_digest,
        dense=parent.dense,
        parent=parent.round,
        target=target,
    )
