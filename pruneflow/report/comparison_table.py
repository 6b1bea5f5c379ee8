"""The table of dense against pruned, which page, model card and terminal all show."""

from typing import Any, NamedTuple

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


class Row(NamedTuple):
    """One line of the comparison, ready to print."""

    measure: str
    dense: str
    pruned: str
    change: str


class Tile(NamedTuple):
    """One number of the headline, ready to print."""

    label: str
    value: str
    note: str


def headline(summary: dict[str, Any]) -> list[Tile]:
    """Return the numbers that say most: size, perplexity, accuracy, speed, memory."""
    parameters, speedup = summary["parameters"], summary["latency"]["speedup"]
    perplexity, peak = summary["perplexity"], of_both(summary["memory"], "peak")
    retention = summary["mean_retention"]
    accuracy = share(retention) if retention else Figure(NOT_MEASURABLE, "")
    return [
        Tile(
            "parameters",
            change(parameters["dense"], parameters["pruned"]),
            f"{count(parameters['pruned'])} left",
        ),
        Tile("perplexity, mean", *ratio(perplexity["mean_ratio"])),
        Tile("accuracy kept, mean", *accuracy),
        Tile("prefill speed", *ratio(speedup["prefill"], "median")),
        Tile("decode speed", *ratio(speedup["decode"], "median")),
        Tile(
            "peak memory",
            change(peak["dense"], peak["pruned"]),
            f"{megabytes(peak['pruned'])} of {megabytes(peak['dense'])}",
        ),
    ]


def comparison(summary: dict[str, Any]) -> dict[str, list[Row]]:
    """Return the rows of the comparison by section, in reading order."""
    return {
        "Size": _size(summary),
        "Perplexity": _perplexity(summary["perplexity"]),
        "Accuracy": _accuracy(summary),
        "Speed": _speed(summary["latency"]),
    }


def overview(summary: dict[str, Any]) -> dict[str, list[Row]]:
    """Return the same with means in place of domains and tasks, for a page that has both below."""
    perplexity = summary["perplexity"]
    worst = perplexity["worst"]
    values = perplexity["domains"][worst["domain"]]
    return {
        "Size": _size(summary),
        "Quality": [
            Row("Perplexity, mean of domains", "", "", str(ratio(perplexity["mean_ratio"]))),
            Row(
                f"Perplexity, worst: {worst['domain']}",
                decimal(values["dense"]),
                decimal(values["pruned"]),
                str(ratio(worst)),
            ),
            Row(f"Accuracy kept, {mean_of(summary)}", "", "", kept(summary["mean_retention"])),
            Row(
                f"Accuracy in points, {mean_of(summary)}",
                "",
                "",
                str(points(summary["mean_difference"])),
            ),
        ],
        "Speed": _speed(summary["latency"]),
    }


def kept(retention: dict[str, Any] | None) -> str:
    """Write a share of accuracy that is kept; what cannot be measured is said to be so."""
    return NOT_MEASURABLE if retention is None else str(share(retention))


def mean_of(summary: dict[str, Any]) -> str:
    """Say how many of the tasks a mean is over: those that are measurable."""
    tasks = summary["tasks"].values()
    return f"mean over {sum(task['measurable'] for task in tasks)} of {len(tasks)} tasks"


def of_both(memory: dict[str, Any], key: str) -> dict[str, int | None]:
    """Return one measure of both models' memory; a model that does not load has none."""
    return {model: found and found[key] for model, found in memory.items()}


def _size(summary: dict[str, Any]) -> list[Row]:
    parameters, memory = summary["parameters"], summary["memory"]
    weights = parameters["block_weights"]
    rows = [
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
        _amount("Weights on disk", summary["bytes"]),
        _amount("Directory on disk", summary["disk"]),
        _amount("Peak memory", of_both(memory, "peak")),
    ]
    on_gpu = of_both(memory, "device_peak")
    return [*rows, _amount("Peak GPU memory", on_gpu)] if any(on_gpu.values()) else rows


def _amount(measure: str, found: dict[str, Any]) -> Row:
    dense, pruned = found["dense"], found["pruned"]
    return Row(measure, megabytes(dense), megabytes(pruned), change(dense, pruned))


def _perplexity(perplexity: dict[str, Any]) -> list[Row]:
    rows = [
        Row(
            domain,
            decimal(values["dense"]),
            decimal(values["pruned"]),
            str(ratio(values["ratio"])),
        )
        for domain, values in perplexity["domains"].items()
    ]
    return [
        *rows,
        Row("geometric mean", "", "", str(ratio(perplexity["mean_ratio"]))),
    ]


def _accuracy(summary: dict[str, Any]) -> list[Row]:
    rows = [
        Row(
            f"{name} ({task['metric']})",
            percent(task["dense"]["value"]),
            percent(task["pruned"]["value"]),
            kept(task["retention"]),
        )
        for name, task in summary["tasks"].items()
    ]
    return [*rows, Row(mean_of(summary), "", "", kept(summary["mean_retention"]))]


def _speed(latency: dict[str, Any]) -> list[Row]:
    dense, pruned, speedup = latency["dense"], latency["pruned"], latency["speedup"]
    rows = [
        Row(
            f"{label}, tokens/s",
            decimal(dense[measure]["median"], 1),
            decimal(pruned[measure]["median"], 1),
            str(ratio(speedup[measure], "median")),
        )
        for measure, label in (("prefill", "Prefill"), ("decode", "Decode"))
    ]
    first = Row(
        "Time to first token",
        milliseconds(dense["first_token"]["median"]),
        milliseconds(pruned["first_token"]["median"]),
        str(ratio(speedup["first_token"], "median")),
    )
    return [*rows, first]
