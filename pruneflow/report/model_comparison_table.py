"""Two models side by side on the terminal."""

from collections.abc import Callable

from rich.markup import escape
from rich.table import Table

from pruneflow.judge.model_comparison import Pair, PairedPerplexity, SideBySide, Value
from pruneflow.measure.latency_record import Median
from pruneflow.report.comparison_table import SPEEDS, kept
from pruneflow.report.number_format import (
    change,
    count,
    decimal,
    megabytes,
    percent,
    ratio,
    times,
)
from pruneflow.report.result_table import add_sections

CAPTION = (
    "The second model relative to the first; in brackets: 95 % intervals. Test text is never used "
    "for pruning, validation text checks each round; health is relative to the dense model."
)
NOT_MEASURED = "not measured"
SAME = "the same"
_DIGEST = 12  # characters

_SIZES: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("Parameters", count),
    "block_weights": ("Block weights", count),
    "bytes": ("Weights on disk", megabytes),
}
_HEALTH = {
    "mean_ratio": "Mean perplexity ratio",
    "worst_ratio": "Worst perplexity ratio",
    "kl": "Divergence, nats",
    "top1_agreement": "Same most likely token",
    "entropy_drift": "Entropy drift, nats",
    "norm_drift": "Norm drift",
}

Line = tuple[str, str, str, str]


def side_table(found: SideBySide) -> Table:
    """Return the table of two models; it fits a terminal of 80 columns."""
    table = Table(
        caption=escape("\n".join([CAPTION, *found.notes])), caption_justify="left", show_edge=False
    )
    add_sections(table, (found.a.title, found.b.title), _sections(found))
    return table


def _sections(found: SideBySide) -> dict[str, list[Line]]:
    compared = found.perplexity.mean_ratio is not None
    return {
        "Size": [
            _line(label, found.size[key], write, change) for key, (label, write) in _SIZES.items()
        ],
        "Perplexity, test": _perplexity(found.perplexity),
        "Perplexity, validation": [
            _line(domain, pair, decimal, _times) for domain, pair in found.validation.items()
        ],
        "Accuracy": [
            # Without a mean the two were not compared at all, and a note explains why.
            (*_cells(task, pair, percent), str(kept(pair.retention)) if compared else "")
            for task, pair in found.tasks.items()
        ],
        "Speed": [
            _line(label, _medians(found.speed[key]), write, _times)
            for key, (label, write, _) in SPEEDS.items()
        ],
        "Health": [
            (*_cells(label, found.health[key], lambda value: decimal(value, 3)), "")
            for key, label in _HEALTH.items()
            if key in found.health
        ],
        "Settings that differ": [
            (*_cells(key, pair, str), "") for key, pair in found.settings.items()
        ],
        "Digests": [
            _line(key, pair, lambda digest: digest[:_DIGEST], lambda x, y: SAME if x == y else "")
            for key, pair in found.digests.items()
        ],
    }


def _perplexity(found: PairedPerplexity) -> list[Line]:
    lines = [
        (*_cells(domain, pair, decimal), str(ratio(pair.ratio)) if pair.ratio else "")
        for domain, pair in found.domains.items()
    ]
    mean = found.mean_ratio
    return [*lines, ("geometric mean", "", "", str(ratio(mean)))] if mean else lines


def _line(
    label: str,
    pair: Pair[Value],
    write: Callable[[Value], str],
    compare: Callable[[Value, Value], str],
) -> Line:
    a, b = pair.a, pair.b
    return (*_cells(label, pair, write), "" if a is None or b is None else compare(a, b))


def _cells(label: str, pair: Pair[Value], write: Callable[[Value], str]) -> tuple[str, str, str]:
    first, second = (NOT_MEASURED if side is None else write(side) for side in (pair.a, pair.b))
    return label, first, second


def _times(first: float, second: float) -> str:
    return times(second / first)


def _medians(pair: Pair[Median]) -> Pair[float]:
    return Pair[float](a=pair.a and pair.a["median"], b=pair.b and pair.b["median"])
