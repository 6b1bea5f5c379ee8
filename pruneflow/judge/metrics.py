"""The metrics a gate can name: each is one function of a comparison of two models.

A new metric is one function below. Where a metric has an interval, gates look at its worse end.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from pruneflow.judge.compare import Comparison
from pruneflow.judge.intervals import Estimate
from pruneflow.judge.summary import Summary
from pruneflow.measure.latency_record import Median


class Measured(Estimate):
    """An estimate, and the domains it is about where the metric's name does not give them."""

    domain: str | None


class Metric(NamedTuple):
    """A registered metric.

    Attributes:
        measure: of a comparison and, where it takes one, the part of the metric's name after the
            dot; gives a number or an `Estimate`, or None where there is no measurement.
        part: what a gate must name after the dot, ``task`` or ``domain``; None for nothing.
        parity: its value when both models are equal; None where neither side is better.
        better: on which side of parity the candidate is better.
        of_two_records: whether two evaluations are enough for it, so that it can be compared with
            the model in production; else it needs a summary.
    """

    measure: Callable[..., Estimate | float | None]
    part: str | None
    parity: float | None
    better: Literal["lower", "higher"] | None
    of_two_records: bool


METRICS: dict[str, Metric] = {}


def metric(
    parity: float | None = None,
    better: Literal["lower", "higher"] | None = None,
    of_two_records: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a metric under its function's name.

    The function takes the comparison and, when it has a second parameter, what follows the dot in
    configs/gates.yaml: ``task_retention.piqa`` calls ``task_retention(comparison, "piqa")``.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _, *parts = inspect.signature(function).parameters
        part = parts[0] if parts else None
        METRICS[function.__name__] = Metric(function, part, parity, better, of_two_records)
        return function

    return register


@metric(parity=1, better="lower")
def perplexity_ratio_mean(found: Comparison) -> Estimate:
    """Geometric mean over domains of pruned perplexity over dense perplexity."""
    return found.perplexity.mean_ratio


@metric(parity=1, better="lower")
def perplexity_ratio_worst(found: Comparison) -> Measured:
    """Perplexity ratio of the domain that may have suffered most: with the highest upper end.

    The domain with the highest ratio need not be the one that is worst off: another, measured on
    windows that differ more, may be.
    """
    ratios = {name: domain.ratio for name, domain in found.perplexity.domains.items()}

    def upper_end(domain: str) -> float:
        high = ratios[domain]["high"]
        return math.inf if high is None else high

    worst = max(ratios, key=upper_end)
    return {**ratios[worst], "domain": worst}


@metric(parity=1, better="lower")
def perplexity_ratio(found: Comparison, domain: str) -> Estimate | None:
    """Perplexity ratio of one domain."""
    measured = found.perplexity.domains.get(domain)
    return measured.ratio if measured else None


@metric(parity=1, better="higher")
def task_retention(found: Comparison, task: str) -> Estimate | None:
    """Pruned accuracy over dense accuracy on one task."""
    asked = found.tasks.get(task)
    return asked.retention if asked else None


@metric(parity=1, better="higher")
def task_above_chance(found: Comparison, task: str) -> Estimate | None:
    """Task retention of the accuracy above chance."""
    asked = found.tasks.get(task)
    return asked.above_chance if asked else None


@metric(parity=0, better="higher")
def task_difference(found: Comparison, task: str) -> Estimate | None:
    """Pruned accuracy minus dense accuracy on one task, question by question."""
    asked = found.tasks.get(task)
    return asked.difference if asked and asked.measurable else None


@metric(parity=1, better="higher")
def mean_retention(found: Comparison) -> Estimate | None:
    """Mean of task retention over the measurable tasks."""
    return found.mean_retention


@metric(parity=0, better="higher")
def mean_difference(found: Comparison) -> Estimate | None:
    """Mean of pruned accuracy minus dense accuracy over the measurable tasks."""
    return found.mean_difference


@metric(parity=0, better="higher")
def block_ratio(found: Comparison) -> float:
    """Share of the dense model's block weights that is removed."""
    return found.parameters.block_ratio


@metric(parity=1, better="lower")
def bytes_ratio(found: Comparison) -> float:
    """Bytes of weights on disk, pruned over dense."""
    return found.bytes.ratio


@metric(of_two_records=False)
def reload_ok(found: Summary) -> float:
    """1 when a fresh process without this project loads the model and generates, else 0."""
    return float(found.reload.ok)


@metric(of_two_records=False)
def lm_eval_ok(found: Summary) -> float:
    """1 when the command ``lm_eval --model hf`` runs on the model's directory, else 0."""
    return float(found.lm_eval.ok)


@metric(parity=1, better="higher", of_two_records=False)
def decode_speedup(found: Summary) -> Estimate:
    """Decoded tokens per second, pruned over dense, median of interleaved repeats."""
    return estimate_of(found.latency.speedup.decode)


@metric(parity=1, better="higher", of_two_records=False)
def prefill_speedup(found: Summary) -> Estimate:
    """Prefilled tokens per second, pruned over dense, median of interleaved repeats."""
    return estimate_of(found.latency.speedup.prefill)


@metric(of_two_records=False)
def uncalibrated_domains(found: Summary) -> Measured:
    """How many of the measured domains have no text in the calibration set."""
    calibrated = found.calibration_domains
    missing = [domain for domain in found.perplexity.domains if not calibrated.get(domain)]
    count = float(len(missing))
    return {"value": count, "low": count, "high": count, "domain": ", ".join(missing) or None}


def estimate_of(found: Median) -> Estimate:
    """Return a median as an estimate, without the extremes."""
    return {"value": found["median"], "low": found["low"], "high": found["high"]}


def find_metric(name: str) -> Metric | None:
    """Return the metric that a gate names; None if it is unknown."""
    plain, dot, part = name.partition(".")
    found = METRICS.get(plain)
    if found is None or bool(dot and part) != (found.part is not None):
        return None
    return found


def known_metrics() -> str:
    """List the metrics as configs/gates.yaml spells them, e.g. ``task_retention.TASK``."""
    return ", ".join(
        f"{name}.{found.part.upper()}" if found.part else name for name, found in METRICS.items()
    )


def measure(name: str, found: Comparison) -> Measured | None:
    """Return a metric of a comparison; None where it was not measured or has no interval.

    A number without an interval is its own interval. ``domain`` is None unless the metric names
    one itself.
    """
    metric = find_metric(name)
    if metric is None or not (metric.of_two_records or isinstance(found, Summary)):
        return None
    value = metric.measure(found, *name.split(".", 1)[1:])
    if value is None:
        return None
    if not isinstance(value, dict):
        value = {"value": value, "low": value, "high": value}
    ends = (value["value"], value["low"], value["high"])
    if not all(end is not None and math.isfinite(end) for end in ends):
        return None
    return {"domain": None, **value}
