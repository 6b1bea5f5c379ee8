"""Collect what `pruneflow compare` shows about a registered version or a model of the workspace.

Data about a version come from its MLflow run; data about a round, the dense or the delivered model
come from its record and from the reports with the same digest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pruneflow.errors import InputError
from pruneflow.judge.model_comparison import SIZES, Side
from pruneflow.judge.summary import Summary
from pruneflow.measure.evaluation_record import EvaluatedModel, Evaluation
from pruneflow.measure.latency_record import Speed
from pruneflow.models.digests import weight_file_bytes
from pruneflow.models.round_record import RECORD, RoundRecord, read_round_record
from pruneflow.paths import BASELINE, CHECKPOINTS, EVALUATION, MODEL, SUMMARY
from pruneflow.records import DomainLoss, find_record
from pruneflow.report.dvc_plots import HEALTH
from pruneflow.settings.pipeline import DENSE, PipelineSettings
from tasks.registry import versions
from tasks.registry.production import EVALUATION_ARTIFACT
from tasks.tracking.runs import parameters

SUMMARY_ARTIFACT = "reports/summary.json"
DELIVERED = "model"


def find_side(name: str, settings: PipelineSettings) -> Side:
    """Return one side of a comparison.

    Args:
        name: a version's number or alias, a round, ``dense``, or ``model`` (the delivered model).
        settings: of the pipeline.

    Raises:
        InputError: there is no such version or model, or it was skipped.
    """
    if name.isdigit() or name in versions.ALIASES:
        return _version(name, settings)
    directory = MODEL if name == DELIVERED else CHECKPOINTS / name
    if not (directory / RECORD).is_file():
        there = [path.parent.name for path in sorted(CHECKPOINTS.glob(f"[!.]*/{RECORD}"))]
        known = [*versions.ALIASES, *([DELIVERED] if MODEL.is_dir() else []), *there]
        raise InputError(
            f"there is no model {name} to compare: give a version's number or one of "
            f"{', '.join(known)}"
        )
    return _directory(name, directory, settings)


def _version(name: str, settings: PipelineSettings) -> Side:
    version = versions.find_version(settings.registry, name)
    digest = version.get("model_digest", "")
    evaluation = versions.find_record(Evaluation, version, EVALUATION_ARTIFACT)
    if evaluation and evaluation.model.digest != digest:
        evaluation = None
    summary = versions.find_record(Summary, version, SUMMARY_ARTIFACT)
    record = None
    if summary:
        place = f"rounds/{summary.model.delivered}/{RECORD}"
        record = versions.find_record(RoundRecord, version, place)
    checks = _as_round(record, digest)
    digests = {
        "model": digest,
        "dense model": version.get("dense_digest"),
        "calibration set": version.get("data_digest"),
        "all settings": version.get("recipe_digest"),
        "gates": version.get("gates_digest"),
        "code": version.get("git_commit"),
    }
    return Side(
        name=name,
        title=f"version {version['version']}",
        sizes=_sizes(evaluation.model) if evaluation else {},
        evaluation=evaluation,
        speed=_speed(summary, digest),
        validation=checks.validation,
        health=checks.health,
        settings=versions.parameters_of(settings.registry, version),
        digests={key: value for key, value in digests.items() if value},
    )


def _directory(name: str, directory: Path, settings: PipelineSettings) -> Side:
    record = read_round_record(directory)
    if record.status == "skipped":
        raise InputError(
            f"round {name} was skipped, because an earlier round ended the schedule: compare "
            f"{record.delivered} instead"
        )
    digest, summary = str(record.digest), find_record(Summary, SUMMARY)
    complete = (
        summary is not None
        and summary.digests.pruned == digest
        and summary.digests.settings == settings.digest()
    )
    digests = {
        "model": digest,
        "dense model": record.dense.digest,
        "calibration set": record.calibration_set,
        "all settings": settings.digest() if complete else None,
    }
    evaluations = (find_record(Evaluation, path) for path in (BASELINE, EVALUATION))
    checks = _as_dense(record, settings) if name == DENSE else _as_round(record, digest)
    titles = {DENSE: "dense model", DELIVERED: "delivered model"}
    return Side(
        name=name,
        title=titles.get(name, f"round {name}"),
        sizes={**_sizes(record), "bytes": weight_file_bytes(directory)},
        evaluation=next(
            (found for found in evaluations if found and found.model.digest == digest), None
        ),
        speed=_speed(summary, digest),
        validation=checks.validation,
        health=checks.health,
        settings=(
            {key: str(value) for key, value in parameters(settings).items()}
            if complete
            else _recorded(record)
        ),
        digests={key: value for key, value in digests.items() if value},
    )


class _RoundChecks(NamedTuple):
    """Health and perplexity on validation text; empty where a model was not checked."""

    health: Mapping[str, float | None]
    validation: Mapping[str, float]


_UNCHECKED = _RoundChecks({}, {})


def _as_round(record: RoundRecord | None, digest: str) -> _RoundChecks:
    """Return the checks of a round's model; none were made of a recovered model."""
    if record is None or record.digest != digest or record.recovered_from or not record.health:
        return _UNCHECKED
    health = {key: getattr(record.health, key) for key in HEALTH}
    losses = record.validation.pruned if record.validation else {}
    return _RoundChecks(health, _perplexities(losses))


def _as_dense(record: RoundRecord, settings: PipelineSettings) -> _RoundChecks:
    """Return the dense model's values in the checks of the first round."""
    first = find_record(RoundRecord, CHECKPOINTS / next(iter(settings.rounds)) / RECORD)
    if first is None or first.dense.digest != record.digest:
        return _UNCHECKED
    losses = first.validation.dense if first.validation else {}
    return _RoundChecks(HEALTH, _perplexities(losses))


def _perplexities(losses: Mapping[str, DomainLoss]) -> dict[str, float]:
    return {domain: loss["perplexity"] for domain, loss in losses.items()}


def _speed(summary: Summary | None, digest: str) -> Speed | None:
    """Return the speed of the model in a summary that has this digest."""
    if summary and summary.digests.dense == digest:
        return summary.latency.dense
    return summary.latency.pruned if summary and summary.digests.pruned == digest else None


def _sizes(record: RoundRecord | EvaluatedModel) -> dict[str, int]:
    sizes = {key: getattr(record, key, None) for key in SIZES}
    return {key: size for key, size in sizes.items() if size is not None}


def _recorded(record: RoundRecord) -> dict[str, str]:
    """Return the settings in a round's record."""
    kept = record.model_dump(include={"layout", "score", "refit"}, exclude_none=True)
    return {f"pruning.{name}": value for name, value in kept.items()}
