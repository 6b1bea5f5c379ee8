"""Any two models side by side: what each came to, and what was not measured for one of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pruneflow.errors import InputError
from pruneflow.judge.compare import compare
from pruneflow.settings.pipeline import EvaluationSettings

SIZES = ("parameters", "block_weights", "bytes")
SPEEDS = ("prefill", "decode", "first_token")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Side:
    """A model, and what is known of it.

    Attributes:
        name: what one calls it, e.g. ``production`` or ``r1``.
        title: what it is, e.g. ``version 3``.
        sizes: what is known of SIZES.
        evaluation: its record on test text and questions; None when it was not evaluated.
        speed: medians with intervals, by SPEEDS; None when it was not timed.
        validation: perplexity on validation text, by domain; empty when unknown.
        health: how a round stands to the dense model, by measure; empty when it is no round.
        settings: by dotted name, as text; those that are recorded.
        digests: of the model and of what it was made from.
    """

    name: str
    title: str
    sizes: Mapping[str, int]
    evaluation: dict[str, Any] | None = None
    speed: Mapping[str, Any] | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    health: Mapping[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def side_by_side(a: Side, b: Side, settings: EvaluationSettings) -> dict[str, Any]:
    """Put two models side by side.

    Args:
        a: the one that the other is compared with.
        b: the other.
        settings: bootstrap resamples and seed of the intervals.

    Returns:
        By section, for each measure the values of ``a`` and ``b``, None where there is none:
        ``size``, ``perplexity`` (test text, with the paired ``ratio`` of b to a), ``validation``
        (text that rounds are checked on), ``tasks`` (with the ``retention`` of b against a),
        ``speed``, ``health``, ``settings`` (those that differ) and ``digests``. ``notes`` say
        what was not measured, or cannot be compared.
    """
    compared, problem = _compared(a, b, settings)
    return {
        "a": {"name": a.name, "title": a.title},
        "b": {"name": b.name, "title": b.title},
        "size": {key: _pair(a.sizes, b.sizes, key) for key in SIZES},
        "perplexity": _perplexity(a, b, compared),
        "validation": {
            domain: _pair(a.validation, b.validation, domain)
            for domain in _names(a.validation, b.validation)
        },
        "tasks": _tasks(a, b, compared),
        "speed": {key: _pair(a.speed or {}, b.speed or {}, key) for key in SPEEDS},
        "health": {key: _pair(a.health, b.health, key) for key in _names(a.health, b.health)},
        "settings": {
            key: _pair(a.settings, b.settings, key)
            for key in sorted(a.settings.keys() & b.settings.keys())
            if a.settings[key] != b.settings[key]
        },
        "digests": {key: _pair(a.digests, b.digests, key) for key in _names(a.digests, b.digests)},
        "notes": [*_not_measured(a), *_not_measured(b), *([problem] if problem else [])],
    }


def _compared(
    a: Side, b: Side, settings: EvaluationSettings
) -> tuple[dict[str, Any] | None, str | None]:
    """Compare the records of both in pairs; or say why that cannot be done."""
    if a.evaluation is None or b.evaluation is None:
        return None, None
    try:
        return compare(a.evaluation, b.evaluation, settings, (a.title, b.title)), None
    except InputError as error:
        return None, str(error)


def _perplexity(a: Side, b: Side, compared: dict[str, Any] | None) -> dict[str, Any]:
    first, second = (_of(side, "perplexity", lambda found: found["perplexity"]) for side in (a, b))
    ratios = compared["perplexity"]["domains"] if compared else {}
    rows = {
        domain: {**_pair(first, second, domain), "ratio": (ratios.get(domain) or {}).get("ratio")}
        for domain in _names(first, second)
    }
    mean = compared["perplexity"]["mean_ratio"] if compared else None
    return {"domains": rows, "mean_ratio": mean}


def _tasks(a: Side, b: Side, compared: dict[str, Any] | None) -> dict[str, Any]:
    first, second = (_of(side, "tasks", lambda found: found[found["metric"]]) for side in (a, b))
    facts = compared["tasks"] if compared else {}
    return {
        task: {**_pair(first, second, task), "retention": (facts.get(task) or {}).get("retention")}
        for task in _names(first, second)
    }


def _of(side: Side, part: str, value: Any) -> dict[str, float]:
    records = (side.evaluation or {}).get(part, {})
    return {name: value(found) for name, found in records.items()}


def _pair(a: Mapping[str, Value], b: Mapping[str, Value], key: str) -> dict[str, Value | None]:
    return {"a": a.get(key), "b": b.get(key)}


def _names(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return list({**a, **b})


def _not_measured(side: Side) -> list[str]:
    """Say what is not known of a model."""
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
