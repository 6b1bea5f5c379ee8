"""The table of dense against pruned, which page, model card and terminal all show."""

from typing import Any, NamedTuple

from pruneflow.reporting.numbers import (
    change,
    count,
    decimal,
    megabytes,
    milliseconds,
    percent,
    times,
)


class Row(NamedTuple):
    """One line of the comparison, ready to print."""

    measure: str
    dense: str
    pruned: str
    change: str


def comparison(summary: dict[str, Any]) -> dict[str, list[Row]]:
    """Return the rows of the comparison by section, in reading order."""
    return {
        "Size": _size(summary),
        "Perplexity (lower is better)": _perplexity(summary["perplexity"]),
        "Accuracy and what is kept of it": _accuracy(summary["tasks"]),
        "Speed": _speed(summary["latency"]),
    }


def _size(summary: dict[str, Any]) -> list[Row]:
    parameters, memory = summary["parameters"], summary["memory"]
    weights = parameters["block_weights"]
    return [
        Row(
            "Parameters",
            count(parameters["dense"]),
            count(parameters["pruned"]),
            change(parameters["dense"], parameters["pruned"]),
        ),
        Row(
            "Block weights",
            count(weights["dense"]),
            count(weights["pruned"]),
            change(weights["dense"], weights["pruned"]),
        ),
        _amount("Weights on disk", summary["bytes"]["dense"], summary["bytes"]["pruned"]),
        _amount("Peak memory", _peak(memory["dense"]), _peak(memory["pruned"])),
    ]


def _amount(measure: str, dense: float | None, pruned: float | None) -> Row:
    return Row(measure, megabytes(dense), megabytes(pruned), change(dense, pruned))


def _peak(memory: dict[str, int] | None) -> int | None:
    return None if memory is None else memory["peak"]


def _perplexity(perplexity: dict[str, Any]) -> list[Row]:
    rows = [
        Row(
            domain,
            decimal(values["dense"]),
            decimal(values["pruned"]),
            times(values["ratio"]),
        )
        for domain, values in perplexity["domains"].items()
    ]
    return [
        *rows,
        Row("Geometric mean of ratios", "", "", times(perplexity["mean_ratio"])),
    ]


def _accuracy(tasks: dict[str, Any]) -> list[Row]:
    return [
        Row(
            f"{name} ({task['metric']})",
            percent(task["dense"]),
            percent(task["pruned"]),
            interval(task),
        )
        for name, task in tasks.items()
    ]


def interval(task: dict[str, Any]) -> str:
    """Write a task's retention with its 95 % interval."""
    if task["retention"] is None:
        return "not measurable"
    return f"{percent(task['retention'])} ({percent(task['low'])} to {percent(task['high'])})"


def _speed(latency: dict[str, Any]) -> list[Row]:
    dense, pruned, speedup = latency["dense"], latency["pruned"], latency["speedup"]
    rows = [
        Row(
            f"{label}, tokens per second",
            decimal(dense[measure]["median"], 1),
            decimal(pruned[measure]["median"], 1),
            times(speedup[measure]["median"]),
        )
        for measure, label in (("prefill", "Prefill"), ("decode", "Decode"))
    ]
    first = Row(
        "Time to first token",
        milliseconds(dense["first_token"]["median"]),
        milliseconds(pruned["first_token"]["median"]),
        times(speedup["first_token"]["median"]) + " as fast",
    )
    return [*rows, first]
