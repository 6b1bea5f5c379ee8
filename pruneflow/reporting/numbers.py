"""How reports write numbers: the same way on the page, in the model card and on the terminal."""

MISSING = "\u2013"


def count(value: float) -> str:
    """Write a whole number with spaces between thousands, as in ``134 515 008``."""
    return f"{value:,.0f}".replace(",", "\u202f")


def decimal(value: float | None, places: int = 2) -> str:
    """Write a number with a fixed number of decimals; a dash where there is none."""
    return MISSING if value is None else f"{value:.{places}f}"


def percent(value: float | None, places: int = 1) -> str:
    """Write a share of one as per cent; a dash where there is none."""
    return MISSING if value is None else f"{100 * value:.{places}f}\u202f%"


def times(value: float | None) -> str:
    """Write a ratio, as in ``x 1.45`` with a real multiplication sign; a dash without one."""
    return MISSING if value is None else f"\u00d7\u202f{value:.2f}"


def megabytes(value: float | None) -> str:
    """Write bytes as megabytes (10^6); a dash where there are none."""
    return MISSING if value is None else f"{value / 1e6:.1f}\u202fMB"


def change(dense: float | None, pruned: float | None) -> str:
    """Write how far the pruned model is from the dense one, as in ``-19.4 %``."""
    if dense is None or pruned is None:
        return MISSING
    difference = 100 * (pruned / dense - 1)
    return f"{difference:+.1f}\u202f%".replace("-", "\u2212")


def target(value: dict[str, float]) -> str:
    """Write a round's target: a share of block weights, or parameters or bytes that are left."""
    (kind, amount), *_ = value.items()
    return {"ratio": percent, "bytes": megabytes}.get(kind, count)(amount)


def milliseconds(value: float) -> str:
    """Write seconds as milliseconds."""
    return f"{1000 * value:.1f}\u202fms"
