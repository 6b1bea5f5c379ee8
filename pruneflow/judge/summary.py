"""summary.json: the machine-readable result that reports, gates and the registry read."""

import math
import platform
from importlib import metadata
from typing import Any, Literal

from pydantic import Field

from pruneflow.errors import InputError
from pruneflow.judge.compare import Comparison, Counts, compare
from pruneflow.judge.health import knee
from pruneflow.judge.retention import geometric_mean, perplexity_ratios
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.measure.latency_record import (
    Latency,
    LmEvalRun,
    Memories,
    Reload,
    SampleOutput,
    Timing,
)
from pruneflow.models.round_record import Health, Recovery, RoundRecord
from pruneflow.records import Record, RecordT
from pruneflow.settings.pipeline import PipelineSettings
from pruneflow.settings.pruning import Target

PACKAGES = ("pruneflow", "torch", "transformers", "lm_eval")


class PrunedModel(Record):
    """What was pruned, and how."""

    name: str = Field(description="model.name.")
    source: str = Field(description="model.source.")
    revision: str | None = Field(description="model.revision.")
    delivered: str = Field(description="The round that is delivered; `dense` where none is.")
    planned: str = Field(description="The last round.")
    target: Target | None = Field(description="Target of the last round.")
    layout: str = Field(description="pruning.layout.")
    score: str = Field(description="pruning.score.")
    refit: str = Field(description="pruning.refit.")


class RoundSummary(Record):
    """One round; null where a skipped round has no value."""

    round: str = Field(description="Its name.")
    status: str = Field(description="`done`, `unhealthy` or `skipped`.")
    delivered: str = Field(description="The round that is delivered after it.")
    parent: str | None = Field(description="The round it started from.")
    target: Target | None = Field(description="Its target.")
    achieved_ratio: float | None = Field(description="Share of block weights removed.")
    digest: str | None = Field(description="Its model digest.")
    parameters: int | None = Field(description="All parameters.")
    block_weights: int | None = Field(description="Weights in the matrices of all blocks.")
    health: Health | None = Field(description="Its health.")
    mean_ratio: float | None = Field(
        description="Geometric mean of the perplexity ratios on validation text."
    )


class ReportDigests(Record):
    """sha256 of the JSON of the reports that the summary was made from."""

    baseline: str = Field(description="baseline.json.")
    evaluation: str = Field(description="evaluation.json.")
    latency: str = Field(description="latency.json.")


class SummaryDigests(Record):
    """Digests of everything the result depends on."""

    dense: str = Field(description="The dense model.")
    pruned: str = Field(description="The delivered model.")
    calibration_set: str = Field(description="The calibration set.")
    documents: str = Field(description="The table of documents.")
    held_out: str = Field(description="The held-out text.")
    questions: str = Field(description="Questions and prompts.")
    tokenizer: str = Field(description="The tokenizer.")
    reports: ReportDigests = Field(description="The reports.")
    settings: str = Field(description="The settings that the model depends on.")


class Summary(Comparison):
    """The content of summary.json."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    model: PrunedModel = Field(description="What was pruned, and how.")
    latency: Timing = Field(description="Speed.")
    memory: Memories = Field(description="Peak memory.")
    disk: Counts = Field(description="Bytes of the model directories.")
    reload: Reload = Field(description="Whether the pruned model loads without pruneflow.")
    answers: list[SampleOutput] = Field(description="Sample outputs.")
    lm_eval: LmEvalRun = Field(description="lm-eval's command on the directory.")
    warnings: list[str] = Field(description="Slow widths, and models not timed whole on one GPU.")
    calibration_domains: dict[str, int] = Field(description="Calibration sequences of each domain.")
    rounds: list[RoundSummary] = Field(description="Every round, in order.")
    knee: str | None = Field(description="The round after which the loss rises steeply.")
    recovery: Recovery | None = Field(description="How the delivered model was recovered.")
    digests: SummaryDigests = Field(description="Digests.")
    versions: dict[str, str] = Field(description="Versions of Python and packages.")


def build_summary(
    baseline: Evaluation,
    evaluation: Evaluation,
    latency: Latency,
    rounds: list[RoundRecord],
    settings: PipelineSettings,
    calibration: dict[str, Any],
    documents: dict[str, Any],
    reports: ReportDigests,
) -> Summary:
    """Compare the pruned model's measurements with the dense model's.

    Args:
        baseline: evaluation of the dense model (data/reports/baseline.json).
        evaluation: evaluation of the pruned model (data/reports/evaluation.json).
        latency: speed, memory and reload test (data/reports/latency.json).
        rounds: the round.json of every round, in order.
        settings: the pipeline's settings.
        calibration: manifest of the calibration set.
        documents: manifest of the documents.
        reports: digests of the first three as they are stored.

    Raises:
        InputError: the measurements do not belong together (another test set, another model).
    """
    compared = compare(baseline, evaluation, settings.evaluation)
    _check_rounds(evaluation, rounds)
    described = [_round(record) for record in rounds]
    last = rounds[-1]
    return Summary(
        **dict(compared),
        model=PrunedModel(
            name=settings.model.name,
            source=settings.model.source,
            revision=settings.model.revision,
            delivered=last.delivered,
            planned=last.round,
            target=last.target,
            layout=settings.pruning.layout,
            score=settings.pruning.score,
            refit=settings.pruning.refit,
        ),
        latency=_part(Timing, latency),
        memory=latency.memory,
        disk=Counts(dense=latency.bytes.dense.total, pruned=latency.bytes.pruned.total),
        reload=latency.reload,
        answers=latency.answers,
        lm_eval=_part(LmEvalRun, latency.lm_eval),
        warnings=latency.warnings,
        calibration_domains=calibration["mixture"]["counts"],
        rounds=described,
        knee=_knee(described),
        recovery=evaluation.model.recovery,
        digests=SummaryDigests(
            dense=baseline.model.digest,
            pruned=evaluation.model.digest,
            calibration_set=calibration["digest"],
            documents=documents["digest"],
            held_out=baseline.held_out,
            questions=baseline.questions,
            tokenizer=baseline.tokenizer,
            reports=reports,
            settings=settings.digest(),
        ),
        versions={
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
    )


def _part(kind: type[RecordT], record: RecordT) -> RecordT:
    """Return only what a base class of a record has."""
    return kind(**{name: getattr(record, name) for name in kind.model_fields})


def _check_rounds(evaluation: Evaluation, rounds: list[RoundRecord]) -> None:
    if not rounds:
        raise InputError("there is no round to report: name some under rounds")
    if rounds[-1].delivered_digest != evaluation.model.delivered_digest:
        raise InputError(
            f"the evaluated model is not that of round {rounds[-1].delivered}: "
            "run `dvc repro` again"
        )


def _knee(rounds: list[RoundSummary]) -> str | None:
    """Name the round after which the loss rises steeply; None where there is no such round."""
    points = {
        record.round: (record.achieved_ratio, math.log(record.mean_ratio))
        for record in rounds
        if record.achieved_ratio is not None and record.mean_ratio is not None
    }
    place = knee([*points.values()])
    return None if place is None else [*points][place]


def _round(record: RoundRecord) -> RoundSummary:
    """Return the part of a round's record that reports show."""
    shared = {
        name: getattr(record, name) for name in RoundSummary.model_fields if name != "mean_ratio"
    }
    found = record.validation
    mean = geometric_mean(perplexity_ratios(found.dense, found.pruned)) if found else None
    return RoundSummary(**shared, mean_ratio=mean)
