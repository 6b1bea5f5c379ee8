"""Recipes compared by quality, size and speed, and which of them are Pareto-optimal."""

import math
from collections.abc import Mapping
from typing import TypedDict

from pruneflow.judge.intervals import Estimate
from pruneflow.judge.metrics import decode_speedup, prefill_speedup
from pruneflow.judge.summary import Summary


class Figures(TypedDict):
    """What a recipe achieved, relative to the dense model.

    Attributes:
        digest: of the delivered model.
        delivered: the round that it is.
        parameters: that remain, embeddings included.
        block_ratio: share of the block weights that is removed.
        perplexity_ratio: geometric mean over domains; lower is better.
        task_retention: mean over the measurable tasks; None where there is none.
        prefill: speed-up; above 1 the pruned model is faster.
        decode: speed-up of decoding.
    """

    digest: str
    delivered: str
    parameters: int
    block_ratio: float
    perplexity_ratio: Estimate
    task_retention: Estimate | None
    prefill: Estimate
    decode: Estimate


class Row(TypedDict):
    """A recipe of a sweep: its figures, or the one-line error."""

    recipe: str
    error: str | None
    figures: Figures | None
    pareto: bool


def figures_of(summary: Summary) -> Figures:
    """Return the figures of a pipeline's summary."""
    return {
        "digest": summary.digests.pruned,
        "delivered": summary.model.delivered,
        "parameters": summary.parameters.pruned,
        "block_ratio": summary.parameters.block_ratio,
        "perplexity_ratio": summary.perplexity.mean_ratio,
        "task_retention": summary.mean_retention,
        "prefill": prefill_speedup(summary),
        "decode": decode_speedup(summary),
    }


def pareto_table(figures: Mapping[str, Figures], errors: Mapping[str, str]) -> list[Row]:
    """Return a row for each recipe: the Pareto-optimal ones first, the failed ones last.

    Among equals the one that kept most is first.
    """
    best = pareto_front({name: costs(found) for name, found in figures.items()})
    order = sorted(
        figures,
        key=lambda name: (name not in best, figures[name]["perplexity_ratio"]["value"], name),
    )
    rows: list[Row] = [
        {"recipe": name, "error": None, "figures": figures[name], "pareto": name in best}
        for name in order
    ]
    failed: list[Row] = [
        {"recipe": name, "error": error, "figures": None, "pareto": False}
        for name, error in errors.items()
    ]
    return rows + failed


def costs(figures: Figures) -> tuple[float, float, float]:
    """Return the costs that are compared; lower is better.

    They are the mean perplexity ratio, the parameters, and the time taken against the dense model,
    the geometric mean of prefill and decode. Task retention is left out: a few hundred questions
    tell recipes apart by luck (docs/evaluation.md).
    """
    time = 1 / math.sqrt(figures["prefill"]["value"] * figures["decode"]["value"])
    return figures["perplexity_ratio"]["value"], figures["parameters"], time


def pareto_front(costs: Mapping[str, tuple[float, ...]]) -> set[str]:
    """Return the names that no other dominates.

    One dominates another when it is at most as high in every cost and lower in one.
    """

    def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return {
        name
        for name, cost in costs.items()
        if not any(dominates(other, cost) for other in costs.values())
    }
