"""How much of the dense model is kept: ratios of perplexities and accuracies, with intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy
from pydantic import Field

from pruneflow.errors import InputError
from pruneflow.judge.intervals import Estimate, draw_means, estimate, pooled
from pruneflow.records import DomainLoss, Record


class PerplexityEstimates(NamedTuple):
    """Ratios of two models' perplexities.

    Attributes:
        domains: pruned / dense of each domain.
        mean: their geometric mean.
        worst: the domain with the highest ratio.
    """

    domains: dict[str, Estimate]
    mean: Estimate
    worst: str


class TaskRetention(Record):
    """Accuracy of two models on the same questions."""

    dense: Estimate = Field(description="Accuracy of the dense model.")
    pruned: Estimate = Field(description="Accuracy of the pruned model.")
    difference: Estimate = Field(description="pruned - dense, question by question.")
    measurable: bool = Field(description="Whether the dense model's interval is above chance.")
    retention: Estimate | None = Field(description="pruned / dense; null if not measurable.")
    above_chance: Estimate | None = Field(
        description="(pruned - chance) / (dense - chance); null if not measurable."
    )


class TaskDraws(NamedTuple):
    """Bootstrap draws of one task, each ``[samples]``, from so many questions."""

    questions: int
    difference: numpy.ndarray
    retention: numpy.ndarray


class TaskMeans(NamedTuple):
    """Means over the measurable tasks; None where no task is measurable."""

    difference: Estimate | None
    retention: Estimate | None


def perplexity_ratios(
    dense: Mapping[str, DomainLoss], pruned: Mapping[str, DomainLoss]
) -> dict[str, float]:
    """Return pruned perplexity over dense perplexity for each domain; 1 is no loss.

    Raises:
        InputError: the two were measured on different domains or tokens.
    """
    if set(dense) != set(pruned):
        different = sorted(set(dense) ^ set(pruned))[0]
        raise InputError(
            f"dense and pruned model were not measured on the same domains ({different}): "
            "run both evaluations again"
        )
    if not dense:
        raise InputError("no domain was measured: name some in documents.domains")
    for domain in dense:
        if dense[domain]["tokens"] != pruned[domain]["tokens"]:
            raise InputError(
                f"dense and pruned model were scored on different numbers of tokens of {domain} "
                f"({dense[domain]['tokens']} and {pruned[domain]['tokens']}): "
                "run both evaluations again"
            )
    return {domain: pruned[domain]["perplexity"] / dense[domain]["perplexity"] for domain in dense}


def geometric_mean(ratios: Mapping[str, float]) -> float:
    """Return the geometric mean of the ratios, so that no domain counts more than another."""
    return math.exp(math.fsum(math.log(ratio) for ratio in ratios.values()) / len(ratios))


def worst_ratio(ratios: Mapping[str, float]) -> tuple[str, float]:
    """Return the domain that suffered most and its ratio; a ratio that is not finite is worst."""
    domain = max(ratios, key=lambda name: ratios[name] if math.isfinite(ratios[name]) else math.inf)
    return domain, ratios[domain]


def perplexity_estimates(
    dense: Mapping[str, DomainLoss], pruned: Mapping[str, DomainLoss], samples: int, seed: int
) -> PerplexityEstimates:
    """Compare two models' perplexities on the same windows, with intervals over windows.

    Args:
        dense: losses by domain, with ``windows``.
        pruned: the other model's on the same windows.
        samples: bootstrap resamples.
        seed: of the draws.

    Raises:
        InputError: the two were measured on different domains, tokens or windows.
    """
    ratios = perplexity_ratios(dense, pruned)
    domains, logs, draws, counts = {}, [], [], []
    for place, (domain, ratio) in enumerate(ratios.items()):
        before, after = dense[domain]["windows"], pruned[domain]["windows"]
        units = len(before)
        if units != len(after):
            raise InputError(
                f"dense and pruned model were scored on different windows of {domain} "
                f"({units} and {len(after)}): run both evaluations again"
            )
        rises = numpy.subtract(after, before) * units / dense[domain]["tokens"]
        (drawn,) = draw_means(rises[None], samples, seed + place)
        own = pooled([math.log(ratio)], [drawn], [units])
        domains[domain] = estimate(ratio, numpy.exp(own))
        logs.append(math.log(ratio))
        draws.append(drawn)
        counts.append(units)
    together = numpy.exp(pooled(logs, draws, counts))
    worst, _ = worst_ratio(ratios)
    return PerplexityEstimates(domains, estimate(geometric_mean(ratios), together), worst)


def task_retention(
    dense_correct: Sequence[int],
    pruned_correct: Sequence[int],
    chance: float,
    samples: int,
    seed: int,
) -> tuple[TaskRetention, TaskDraws]:
    """Compare two models' answers to the same questions.

    Equal answers carry no information about the difference: with fewer than about six different
    answers, intervals are too narrow (in simulations they are right from 40 questions on).

    Args:
        dense_correct: 1 or 0 for each question, in the order of the file.
        pruned_correct: the same questions in the same order.
        chance: accuracy of guessing.
        samples: bootstrap resamples.
        seed: of the draws.

    Returns:
        The figures, and their draws for means over tasks.

    Raises:
        InputError: the lists differ in length or are empty.
    """
    count = len(dense_correct)
    if count != len(pruned_correct):
        raise InputError(
            f"dense and pruned model answered different questions ({count} and "
            f"{len(pruned_correct)}): run both evaluations again"
        )
    if not count:
        raise InputError("no question was asked of a task: raise its number in evaluation.tasks")
    correct = numpy.asarray([dense_correct, pruned_correct], dtype=float)
    dense, pruned = (float(mean) for mean in correct.mean(axis=1))
    before, after = draw_means(correct, samples, seed)
    accuracy = estimate(dense, before, count)
    measurable = accuracy["low"] is not None and accuracy["low"] > chance
    with numpy.errstate(divide="ignore", invalid="ignore"):
        ratios = after / before
        above = numpy.where(before > chance, (after - chance) / (before - chance), numpy.nan)
    found = TaskRetention(
        dense=accuracy,
        pruned=estimate(pruned, after, count),
        difference=estimate(pruned - dense, after - before, count),
        measurable=measurable,
        retention=estimate(pruned / dense, ratios, count) if measurable else None,
        above_chance=(
            estimate((pruned - chance) / (dense - chance), above, count) if measurable else None
        ),
    )
    return found, TaskDraws(count, after - before, ratios)


def mean_over_tasks(
    tasks: Mapping[str, TaskRetention], draws: Mapping[str, TaskDraws]
) -> TaskMeans:
    """Average ``difference`` and ``retention`` over the tasks that are measurable.

    A task that is measurable only by the dense model's luck makes the pruned model look worse than
    it is: with many such tasks the upper end is often too low, and the lower, which gates look at,
    hardly ever too high.

    Args:
        tasks: what `task_retention` gives for each.
        draws: and its draws.
    """
    measurable = {
        name: (task.difference["value"], task.retention["value"])
        for name, task in tasks.items()
        if task.retention is not None
    }
    if not measurable:
        return TaskMeans(None, None)
    units = [draws[name].questions for name in measurable]
    differences, retentions = zip(*measurable.values(), strict=True)
    return TaskMeans(
        _mean(differences, [draws[name].difference for name in measurable], units),
        _mean(retentions, [draws[name].retention for name in measurable], units),
    )


def _mean(
    values: Sequence[float], draws: Sequence[numpy.ndarray], units: Sequence[int]
) -> Estimate:
    return estimate(math.fsum(values) / len(values), pooled(values, draws, units))
