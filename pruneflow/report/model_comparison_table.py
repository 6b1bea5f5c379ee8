"""Two models side by side on the terminal."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from pruneflow.report.comparison_table import kept
from pruneflow.report.number_format import (
    change,
    count,
    decimal,
    megabytes,
    milliseconds,
    percent,
    ratio,
    times,
)

CAPTION = (
    "The second model against the first; in brackets: 95 % intervals. Test text is never used for "
    "pruning, on validation text each round is checked; health is against the dense model."
)
NOT_MEASURED = "not measured"
SAME = "the same"
_DIGEST = 12  # characters

_SIZES: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", count),
    "block_weights": ("block weights", count),
    "bytes": ("weights on disk", megabytes),
}
_SPEEDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "prefill": ("prefill, tokens/s", lambda value: decimal(value, 1)),
    "decode": ("decode, tokens/s", lambda value: decimal(value, 1)),
    "first_token": ("time to first token", milliseconds),
}
_HEALTH = {
    "mean_ratio": "mean perplexity ratio",
    "worst_ratio": "worst perplexity ratio",
    "kl": "divergence, nats",
    "top1_agreement": "same likeliest token",
    "entropy_drift": "entropy drift, nats",
    "norm_drift": "norm drift",
}

Line = tuple[str, str, str, str]


def side_table(found: Mapping[str, Any]) -> Table:
    """Return the table of what `side_by_side` found; it fits a terminal of 80 columns."""
    a, b = found["a"]["title"], found["b"]["title"]
    caption = "\n".join([CAPTION, *found["notes"]])
    table = Table(caption=escape(caption), show_edge=False, caption_justify="left")
    table.add_column("")
    for column in (a, b, "change or kept"):
        table.add_column(escape(column), justify="right", overflow="fold")
    for title, lines in _sections(found).items():
        if lines:
            table.add_row(f"[bold]{escape(title)}[/bold]")
            for line in lines:
                table.add_row(*(escape(cell) for cell in line))
            table.add_section()
    return table


def _sections(found: Mapping[str, Any]) -> dict[str, list[Line]]:
    compared = found["perplexity"]["mean_ratio"] is not None
    return {
        "Size": [
            _line(label, found["size"][key], write, change)
            for key, (label, write) in _SIZES.items()
        ],
        "Perplexity, test": _perplexity(found["perplexity"]),
        "Perplexity, validation": [
            _line(domain, pair, decimal, _times) for domain, pair in found["validation"].items()
        ],
        "Accuracy": [
            # Without a mean the two were not compared at all, and a note says why.
            (*_cells(task, pair, percent), kept(pair["retention"]) if compared else "")
            for task, pair in found["tasks"].items()
        ],
        "Speed": [
            _line(label, _medians(found["speed"][key]), write, _times)
            for key, (label, write) in _SPEEDS.items()
        ],
        "Health": [
            _line(label, found["health"][key], lambda value: decimal(value, 3), None)
            for key, label in _HEALTH.items()
            if key in found["health"]
        ],
        "Settings that differ": [
            _line(key, pair, str, None) for key, pair in found["settings"].items()
        ],
        "Digests": [
            _line(key, pair, lambda digest: digest[:_DIGEST], lambda x, y: SAME if x == y else "")
            for key, pair in found["digests"].items()
        ],
    }


def _perplexity(found: Mapping[str, Any]) -> list[Line]:
    lines = [
        (*_cells(domain, pair, decimal), str(ratio(pair["ratio"])) if pair["ratio"] else "")
        for domain, pair in found["domains"].items()
    ]
    mean = found["mean_ratio"]
    return [*lines, ("geometric mean", "", "", str(ratio(mean)))] if mean else lines


def _line(
    label: str,
    pair: Mapping[str, Any],
    write: Callable[[Any], str],
    compare: Callable[[Any, Any], str] | None,
) -> Line:
    against = compare(pair["a"], pair["b"]) if compare and _both(pair) else ""
    return (*_cells(label, pair, write), against)


def _cells(
    label: str, pair: Mapping[str, Any], write: Callable[[Any], str]
) -> tuple[str, str, str]:
    first, second = (
        NOT_MEASURED if pair[side] is None else write(pair[side]) for side in ("a", "b")
    )
    return label, first, second


def _both(pair: Mapping[str, Any]) -> bool:
    return pair["a"] is not None and pair["b"] is not None


def _times(first: float, second: float) -> str:
    return times(second / first)


def _medians(pair: Mapping[str, Any]) -> dict[str, float | None]:
    return {side: pair[side] and pair[side]["median"] for side in ("a", "b")}
