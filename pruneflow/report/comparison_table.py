"""The tables of dense against pruned on the page, the model card and the terminal."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pruneflow.judge.compare import Comparison, PerplexityComparison
from pruneflow.judge.intervals import Estimate
from pruneflow.judge.summary import Summary
from pruneflow.measure.latency_record import Median, Memories, Timing
from pruneflow.report.number_format import (
    NOT_MEASURABLE,
    Figure,
    change,
    count,
    decimal,
    figure,
    megabytes,
    milliseconds,
    percent,
    points,
    ratio,
    share,
    span,
    speed_ratio,
    thousandfold,
    times,
)

rate = partial(decimal, places=1)
# Measures of speed: what they are called, and what writes one with its unit and without.
SPEEDS: dict[str, tuple[str, Callable[[float], str], Callable[[float], str]]] = {
    "prefill": ("Prefill, tokens/s", rate, rate),
    "decode": ("Decode, tokens/s", rate, rate),
    "first_token": ("Time to first token", milliseconds, thousandfold),
}


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


class Spread(NamedTuple):
    """A median with its interval, and the least and the most, ready to print."""

    median: Figure
    extremes: str


def tiles(summary: Summary) -> list[Tile]:
    """Return the headline numbers: size, perplexity, accuracy, speed, memory."""
    parameters, speedup = summary.parameters, summary.latency.speedup
    dense, pruned = of_both(summary.memory, "peak")
    return [
        Tile(
            "parameters",
            change(parameters.dense, parameters.pruned),
            f"{count(parameters.pruned)} remaining",
        ),
        Tile("perplexity, mean", *ratio(summary.perplexity.mean_ratio)),
        Tile("accuracy kept, mean", *kept(summary.mean_retention)),
        Tile("prefill speed", *speed_ratio(speedup.prefill)),
        Tile("decode speed", *speed_ratio(speedup.decode)),
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
            ComparisonRow(f"Accuracy kept, {over}", "", "", str(kept(summary.mean_retention))),
            ComparisonRow(
                f"Accuracy in points, {over}", "", "", str(points(summary.mean_difference))
            ),
        ],
        "Speed": _speed(summary.latency),
    }


def speed_rows(latency: Timing) -> dict[str, list[Spread]]:
    """Return each measure of speed of the dense and of the pruned model, and the speed-up."""
    return {
        label: [
            _spread(getattr(latency.dense, key), write, bare),
            _spread(getattr(latency.pruned, key), write, bare),
            _spread(getattr(latency.speedup, key), times, decimal),
        ]
        for key, (label, write, bare) in SPEEDS.items()
    }


def bytes_rows(summary: Summary) -> list[tuple[str, int | None, int | None]]:
    """Return what both models take on disk and in memory; on a GPU only where one was used."""
    memory, disk, weights = summary.memory, summary.disk, summary.bytes
    peak, before = (of_both(memory, key) for key in ("peak", "before"))
    on_gpu = of_both(memory, "device_peak")
    return [
        ("Model directory on disk", disk.dense, disk.pruned),
        ("of which weights", weights.dense, weights.pruned),
        ("Peak memory of a process that loads and generates", *peak),
        ("of which before loading", *before),
        *([("Peak GPU memory of the same", *on_gpu)] if any(on_gpu) else []),
    ]


def kept(retention: Estimate | None) -> Figure:
    """Write a share of accuracy that is kept, or that it is not measurable."""
    return Figure(NOT_MEASURABLE, "") if retention is None else share(retention)


def mean_of(found: Comparison) -> str:
    """Write how many of the tasks a mean is over: those that are measurable."""
    tasks = found.tasks.values()
    return f"mean over {sum(task.measurable for task in tasks)} of {len(tasks)} tasks"


def of_both(memory: Memories, key: str) -> tuple[int | None, int | None]:
    """Return one measure of both models' memory; a model that does not load has none."""
    return getattr(memory.dense, key, None), getattr(memory.pruned, key, None)


def _size(summary: Summary) -> list[ComparisonRow]:
    parameters, memory = summary.parameters, summary.memory
    weights = parameters.block_weights
    rows = [
        _amount("Parameters", parameters.dense, parameters.pruned, count),
        _amount("Block weights", weights.dense, weights.pruned, count),
        _amount("Weights on disk", summary.bytes.dense, summary.bytes.pruned),
        _amount("Directory on disk", summary.disk.dense, summary.disk.pruned),
        _amount("Peak memory", *of_both(memory, "peak")),
    ]
    on_gpu = of_both(memory, "device_peak")
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
            str(kept(task.retention)),
        )
        for name, task in summary.tasks.items()
    ]
    return [*rows, ComparisonRow(mean_of(summary), "", "", str(kept(summary.mean_retention)))]


def _speed(latency: Timing) -> list[ComparisonRow]:
    return [
        ComparisonRow(
            label,
            write(getattr(latency.dense, key)["median"]),
            write(getattr(latency.pruned, key)["median"]),
            str(speed_ratio(getattr(latency.speedup, key))),
        )
        for key, (label, write, _) in SPEEDS.items()
    ]


def _spread(found: Median, write: Callable[[float], str], bare: Callable[[float], str]) -> Spread:
    return Spread(figure(found, write, bare, "median"), span(found["min"], found["max"], bare))
