"""The table of dense against pruned, which page, model card and terminal all show."""

from collections.abc import Callable
from typing import NamedTuple

from pruneflow.judge.compare import Comparison, PerplexityComparison
from pruneflow.judge.intervals import Estimate
from pruneflow.judge.summary import Summary
from pruneflow.measure.latency_record import Memories, Memory, Timing
from pruneflow.report.number_format import (
    NOT_MEASURABLE,
    Figure,
    change,
    count,
    decimal,
    megabytes,
    milliseconds,
    percent,
    points,
    ratio,
    share,
)


class ComparisonRow(NamedTuple):
    """One line of the comparison, ready to print."""

    measure: str
    dense: str
    pruned: str
    change: str


class Tile(NamedTuple):
    """One headline number, ready to print."""

    label: str
    value: str
    note: str


def tiles(summary: Summary) -> list[Tile]:
    """Return the headline numbers: size, perplexity, accuracy, speed, memory."""
    parameters, speedup = summary.parameters, summary.latency.speedup
    dense, pruned = of_both(summary.memory, lambda memory: memory.peak)
    retention = summary.mean_retention
    accuracy = share(retention) if retention else Figure(NOT_MEASURABLE, "")
    return [
        Tile(
            "parameters",
            change(parameters.dense, parameters.pruned),
            f"{count(parameters.pruned)} remaining",
        ),
        Tile("perplexity, mean", *ratio(summary.perplexity.mean_ratio)),
        Tile("accuracy kept, mean", *accuracy),
        Tile("prefill speed", *ratio(speedup.prefill, "median")),
        Tile("decode speed", *ratio(speedup.decode, "median")),
        Tile("peak memory", change(dense, pruned), f"{megabytes(pruned)} of {megabytes(dense)}"),
    ]


def comparison(summary: Summary) -> dict[str, list[ComparisonRow]]:
    """Return the rows of the comparison by section, in reading order."""
    return {
        "Size": _size(summary),
        "Perplexity": _perplexity(summary.perplexity),
        "Accuracy": _accuracy(summary),
        "Speed": _speed(summary.latency),
    }


def overview(summary: Summary) -> dict[str, list[ComparisonRow]]:
    """Return the same with means in place of domains and tasks, for a page that has both below."""
    perplexity = summary.perplexity
    worst = perplexity.worst
    domain = perplexity.domains[worst["domain"]]
    over = mean_of(summary)
    return {
        "Size": _size(summary),
        "Quality": [
            ComparisonRow("Perplexity, mean of domains", "", "", str(ratio(perplexity.mean_ratio))),
            ComparisonRow(
                f"Perplexity, worst: {worst['domain']}",
                decimal(domain.dense),
                decimal(domain.pruned),
                str(ratio(worst)),
            ),
            ComparisonRow(f"Accuracy kept, {over}", "", "", kept(summary.mean_retention)),
            ComparisonRow(
                f"Accuracy in points, {over}", "", "", str(points(summary.mean_difference))
            ),
        ],
        "Speed": _speed(summary.latency),
    }


def kept(retention: Estimate | None) -> str:
    """Write a share of accuracy that is kept, or that it is not measurable."""
    return NOT_MEASURABLE if retention is None else str(share(retention))


def mean_of(found: Comparison) -> str:
    """Write how many of the tasks a mean is over: those that are measurable."""
    tasks = found.tasks.values()
    return f"mean over {sum(task.measurable for task in tasks)} of {len(tasks)} tasks"


def of_both(
    memory: Memories, read: Callable[[Memory], int | None]
) -> tuple[int | None, int | None]:
    """Return one measure of both models' memory; a model that does not load has none."""
    dense, pruned = memory.dense, memory.pruned
    return read(dense) if dense else None, read(pruned) if pruned else None


def _size(summary: Summary) -> list[ComparisonRow]:
    parameters, memory = summary.parameters, summary.memory
    weights = parameters.block_weights
    rows = [
        _amount("Parameters", parameters.dense, parameters.pruned, count),
        _amount("Block weights", weights.dense, weights.pruned, count),
        _amount("Weights on disk", summary.bytes.dense, summary.bytes.pruned),
        _amount("Directory on disk", summary.disk.dense, summary.disk.pruned),
        _amount("Peak memory", *of_both(memory, lambda one: one.peak)),
    ]
    on_gpu = of_both(memory, lambda one: one.device_peak)
    return [*rows, _amount("Peak GPU memory", *on_gpu)] if any(on_gpu) else rows


def _amount(
    measure: str,
    dense: int | None,
    pruned: int | None,
    write: Callable[[int | None], str] = megabytes,
) -> ComparisonRow:
    return ComparisonRow(measure, write(dense), write(pruned), change(dense, pruned))


def _perplexity(perplexity: PerplexityComparison) -> list[ComparisonRow]:
    rows = [
        ComparisonRow(name, decimal(domain.dense), decimal(domain.pruned), str(ratio(domain.ratio)))
        for name, domain in perplexity.domains.items()
    ]
    return [*rows, ComparisonRow("geometric mean", "", "", str(ratio(perplexity.mean_ratio)))]


def _accuracy(summary: Summary) -> list[ComparisonRow]:
    rows = [
        ComparisonRow(
            f"{name} ({task.metric})",
            percent(task.dense["value"]),
            percent(task.pruned["value"]),
            kept(task.retention),
        )
        for name, task in summary.tasks.items()
    ]
    return [*rows, ComparisonRow(mean_of(summary), "", "", kept(summary.mean_retention))]


def _speed(latency: Timing) -> list[ComparisonRow]:
    dense, pruned, speedup = latency.dense, latency.pruned, latency.speedup
    rates = [
        ("Prefill, tokens/s", dense.prefill, pruned.prefill, speedup.prefill),
        ("Decode, tokens/s", dense.decode, pruned.decode, speedup.decode),
    ]
    rows = [
        ComparisonRow(
            label,
            decimal(before["median"], 1),
            decimal(after["median"], 1),
            str(ratio(faster, "median")),
        )
        for label, before, after, faster in rates
    ]
    first = ComparisonRow(
        "Time to first token",
        milliseconds(dense.first_token["median"]),
        milliseconds(pruned.first_token["median"]),
        str(ratio(speedup.first_token, "median")),
    )
    return [*rows, first]
