"""Any two models side by side: their measures, and what was not measured for one of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import Field

from pruneflow.errors import InputError
from pruneflow.judge.compare import Comparison, Names, compare
from pruneflow.judge.intervals import Estimate
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.measure.latency_record import Median, Speed
from pruneflow.records import Record
from pruneflow.settings.pipeline import EvaluationSettings

SIZES = ("parameters", "block_weights", "bytes")

Value = TypeVar("Value")


class Pair(Record, Generic[Value]):
    """A measure of two models."""

    a: Value | None = Field(description="The first model; null where it was not measured.")
    b: Value | None = Field(description="The second model.")


PairT = TypeVar("PairT", bound=Pair[Any])


class PerplexityPair(Pair[float]):
    """Perplexity of two models on the test text of a domain."""

    ratio: Estimate | None = Field(description="b / a; null where they cannot be compared.")


class AccuracyPair(Pair[float]):
    """Accuracy of two models on a task."""

    retention: Estimate | None = Field(description="b / a; null where it is not measurable.")


class PairedPerplexity(Record):
    """Perplexity of two models on test text."""

    domains: dict[str, PerplexityPair] = Field(description="By domain.")
    mean_ratio: Estimate | None = Field(description="Geometric mean of the ratios.")


class Named(Record):
    """Which model."""

    name: str = Field(description="As it was asked for.")
    title: str = Field(description="What it is.")


class SideBySide(Record):
    """Two models side by side, as `pruneflow compare --json` prints it."""

    a: Named = Field(description="The first model.")
    b: Named = Field(description="The second model.")
    size: dict[str, Pair[int]] = Field(description="Parameters, block weights and bytes.")
    perplexity: PairedPerplexity = Field(description="On test text.")
    validation: dict[str, Pair[float]] = Field(description="Perplexity on validation text.")
    tasks: dict[str, AccuracyPair] = Field(description="By task.")
    speed: dict[str, Pair[Median]] = Field(description="Prefill, decode and first token.")
    health: dict[str, Pair[float]] = Field(description="Health of a round, by measure.")
    settings: dict[str, Pair[str]] = Field(description="Settings that differ, by dotted name.")
    digests: dict[str, Pair[str]] = Field(description="Digests.")
    notes: list[str] = Field(description="What was not measured, or cannot be compared.")


@dataclass(frozen=True)
class Side:
    """A model, and what is known about it.

    Attributes:
        name: as it was asked for, e.g. ``production`` or ``r1``.
        title: what it is, e.g. ``version 3``.
        sizes: those of SIZES that are known.
        evaluation: on test text and questions; None when it was not evaluated.
        speed: None when it was not timed.
        validation: perplexity on validation text, by domain; empty when unknown.
        health: of a round, by measure; empty when it is no round.
        settings: by dotted name, as text; those that are recorded.
        digests: of the model and of what it was made from.
    """

    name: str
    title: str
    sizes: Mapping[str, int]
    evaluation: Evaluation | None = None
    speed: Speed | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    health: Mapping[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def side_by_side(a: Side, b: Side, settings: EvaluationSettings) -> SideBySide:
    """Put two models side by side.

    Args:
        a: the one that the other is compared with.
        b: the other.
        settings: bootstrap resamples and seed of the intervals.
    """
    compared, problem = _compared(a, b, settings)
    domains = compared.perplexity.domains if compared else {}
    tasks = compared.tasks if compared else {}
    evaluations = (a.evaluation, b.evaluation)
    perplexities = (
        {name: loss["perplexity"] for name, loss in found.perplexity.items()} if found else {}
        for found in evaluations
    )
    accuracies = (
        {name: task.accuracy for name, task in found.tasks.items()} if found else {}
        for found in evaluations
    )
    speeds = (
        dict(side.speed) if side.speed else dict.fromkeys(Speed.model_fields) for side in (a, b)
    )
    return SideBySide(
        a=Named(name=a.name, title=a.title),
        b=Named(name=b.name, title=b.title),
        size={key: Pair[int](a=a.sizes.get(key), b=b.sizes.get(key)) for key in SIZES},
        perplexity=PairedPerplexity(
            domains=_pairs(
                PerplexityPair,
                *perplexities,
                ratio={name: domain.ratio for name, domain in domains.items()},
            ),
            mean_ratio=compared.perplexity.mean_ratio if compared else None,
        ),
        validation=_pairs(Pair[float], a.validation, b.validation),
        tasks=_pairs(
            AccuracyPair,
            *accuracies,
            retention={name: task.retention for name, task in tasks.items()},
        ),
        speed=_pairs(Pair[Median], *speeds),
        health=_pairs(Pair[float], a.health, b.health),
        settings={
            key: Pair[str](a=a.settings[key], b=b.settings[key])
            for key in sorted(a.settings.keys() & b.settings.keys())
            if a.settings[key] != b.settings[key]
        },
        digests=_pairs(Pair[str], a.digests, b.digests),
        notes=[*_not_measured(a), *_not_measured(b), *([problem] if problem else [])],
    )


def _compared(
    a: Side, b: Side, settings: EvaluationSettings
) -> tuple[Comparison | None, str | None]:
    """Compare the evaluations of both in pairs; or return why that cannot be done."""
    if a.evaluation is None or b.evaluation is None:
        return None, None
    try:
        return compare(a.evaluation, b.evaluation, settings, Names(a.title, b.title)), None
    except InputError as error:
        return None, str(error)


def _pairs(
    kind: type[PairT], a: Mapping[str, Any], b: Mapping[str, Any], **compared: Mapping[str, Any]
) -> dict[str, PairT]:
    """Pair the measures of two models by name, with what was found by comparing them."""
    return {
        key: kind(
            a=a.get(key),
            b=b.get(key),
            **{field: found.get(key) for field, found in compared.items()},
        )
        for key in {**a, **b}
    }


def _not_measured(side: Side) -> list[str]:
    """Name what is not known about a model."""
    missing = {
        "perplexity on test text and tasks": side.evaluation is None,
        "speed": side.speed is None,
        "health and perplexity on validation text": not side.health,
    }
    absent = [what for what, lacks in missing.items() if lacks]
    notes = [f"not measured for {side.title}: {', '.join(absent)}"] if absent else []
    if not side.settings:
        notes.append(f"the settings of {side.title} are not recorded")
    return notes
