"""How reports write numbers: the same way on the page, in the model card and on the terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pruneflow.settings.pruning import Target

MISSING = "\u2013"
NOT_MEASURABLE = "not measurable"


class Figure(NamedTuple):
    """A number and the note in brackets after it, or in small print below it, ready to print."""

    value: str
    note: str  # mostly its 95 % interval, as in "1.38 to 1.52"; may be empty

    def __str__(self) -> str:
        return f"{self.value} ({self.note})" if self.note else self.value


def count(value: float | None) -> str:
    """Write an integer with spaces between thousands, as in ``134 515 008``."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def decimal(value: float | None, places: int = 2) -> str:
    """Write a number with a fixed number of decimals; a dash where there is none."""
    return MISSING if value is None else f"{value:.{places}f}".replace("-", "\u2212")


def signed(value: float | None, places: int = 2) -> str:
    """Write a number that may go either way with its sign; a dash where there is none."""
    return MISSING if value is None else f"{value:+z.{places}f}".replace("-", "\u2212")


def percent(value: float | None) -> str:
    """Write a share of one as per cent; a dash where there is none."""
    return MISSING if value is None else f"{_hundredfold(value)}\u202f%"


def times(value: float | None) -> str:
    """Write a ratio, as in ``x 1.45`` with a real multiplication sign; a dash without one."""
    return MISSING if value is None else f"\u00d7\u202f{value:.2f}"


def megabytes(value: float | None) -> str:
    """Write bytes as megabytes (10^6); a dash where there are none."""
    return MISSING if value is None else f"{value / 1e6:.1f}\u202fMB"


def change(dense: float | None, pruned: float | None) -> str:
    """Write the relative change from the dense to the pruned model, as in ``-19.4 %``."""
    if dense is None or pruned is None:
        return MISSING
    return signed(100 * (pruned / dense - 1), 1) + "\u202f%"


def target(value: Target | None) -> str:
    """Write a round's target: a share of block weights, or parameters or bytes that remain."""
    if value is None:
        return MISSING
    if value.ratio is not None:
        return percent(value.ratio)
    return count(value.parameters) if value.bytes is None else megabytes(value.bytes)


def milliseconds(value: float) -> str:
    """Write seconds as milliseconds."""
    return f"{thousandfold(value)}\u202fms"


def thousandfold(value: float) -> str:
    """Write seconds as milliseconds, without the unit."""
    return decimal(1000 * value, 1)


def ratio(found: Mapping[str, Any] | None, key: str = "value") -> Figure:
    """Write an estimated ratio, as in ``x 1.45 (1.38 to 1.52)``; `key` names the number itself."""
    return figure(found, times, decimal, key)


def speed_ratio(found: Mapping[str, Any]) -> Figure:
    """Write a speed-up; `not measurable` if its interval is wider than half of it."""
    low, high = found["low"], found["high"]
    written = ratio(found, "median")
    if low is not None and high is not None and high - low > found["median"] / 2:
        return written._replace(value=NOT_MEASURABLE)
    return written


def share(found: Mapping[str, Any] | None) -> Figure:
    """Write an estimated share of one as per cent, as in ``93.4 % (88.9 to 97.8)``."""
    return figure(found, percent, _hundredfold)


def points(found: Mapping[str, Any] | None) -> Figure:
    """Write an estimated difference in percentage points, as in ``-4.5 (-8.1 to -0.9)``."""
    return figure(found, _points, _points)


def figure(
    found: Mapping[str, Any] | None,
    write: Callable[[float], str],
    bare: Callable[[float], str],
    key: str = "value",
) -> Figure:
    """Write an estimate with its interval; a dash where there is none.

    Args:
        found: a number under `key` and the ends ``low`` and ``high``, each None where unknown.
        write: writes the number.
        bare: writes an end, without its unit.
        key: ``value`` of an `Estimate`, ``median`` of a spread.
    """
    if found is None:
        return Figure(MISSING, "")
    low, high = found["low"], found["high"]
    if low is None and high is None:
        return Figure(write(found[key]), MISSING)
    return Figure(write(found[key]), span(low, high, bare))


def span(low: float | None, high: float | None, bare: Callable[[float], str]) -> str:
    """Write two ends, as in ``1.38 to 1.52``, which stay on one line."""
    return "\u00a0to\u00a0".join(MISSING if end is None else bare(end) for end in (low, high))


def span_of(widths: Sequence[int]) -> str:
    """Write the widths of layers, as in ``1120`` or ``900 to 1200``."""
    low, high = min(widths), max(widths)
    return count(low) if low == high else span(low, high, count)


def listed(counts: Mapping[str, int]) -> str:
    """Write counts by name as in ``en 640, fr 12``; nothing for counts of nothing."""
    return ", ".join(
        f"{name.replace('_', ' ')}\u00a0{count(number)}"
        for name, number in counts.items()
        if number
    )


def _hundredfold(value: float) -> str:
    return decimal(100 * value, 1)


def _points(value: float) -> str:
    return signed(100 * value, 1)
