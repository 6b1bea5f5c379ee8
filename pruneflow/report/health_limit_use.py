"""How near each measure of a round's health came to the limit that is set for it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pruneflow.report.number_format import MISSING, decimal, percent, times


class Use(NamedTuple):
    """One measure beside its limit, ready to print.

    Attributes:
        measure: what it is called.
        found: what was measured.
        limit: what is allowed, as in ``at most 2.00``.
        share: of the way from the dense model (0) to the limit (1).
    """

    measure: str
    found: str
    limit: str
    share: float


def uses(health: dict[str, Any], limits: dict[str, float | None]) -> Iterator[Use]:
    """Yield each measure that has a limit and was taken.

    Args:
        health: of a round, as `check_round` returns it.
        limits: the settings' section ``health``, by name.
    """
    ratio, most = health.get("worst_ratio"), limits["max_perplexity_ratio"]
    if ratio is not None and most is not None:
        share = (ratio - 1) / (most - 1)
        yield Use("worst perplexity ratio", times(ratio), f"at most {times(most)}", max(0.0, share))
    for measure, key, limit in (
        ("KL, nats", "kl", "max_kl"),
        ("repetition rise", "repetition", "max_repetition_rise"),
        ("entropy drift", "entropy_drift", "max_entropy_drift"),
        ("norm drift", "norm_drift", "max_norm_drift"),
    ):
        value, most = health.get(key), limits[limit]
        value = value["rise"] if isinstance(value, dict) else value
        if value is not None and most:
            moved = abs(value) if key == "entropy_drift" else max(0.0, value)
            yield Use(measure, decimal(value, 3), f"at most {decimal(most)}", moved / most)
    agreed, least = health.get("top1_agreement"), limits["min_top1_agreement"]
    if agreed is not None and least is not None and least < 1:
        share = (1 - agreed) / (1 - least)
        yield Use("same token", percent(agreed), f"at least {percent(least)}", share)


def limits_sentence(limits: dict[str, float | None]) -> str:
    """Say what a round may not go beyond."""
    said = [
        f"worst perplexity ratio {times(limits['max_perplexity_ratio'])}",
        f"KL {decimal(limits['max_kl'])} nats",
        f"same token at least {percent(limits['min_top1_agreement'])}",
        f"repetition rise {decimal(limits['max_repetition_rise'])}",
        f"entropy drift {decimal(limits['max_entropy_drift'])} nats",
        f"norm drift {decimal(limits['max_norm_drift'])}",
    ]
    return ", ".join(part for part in said if MISSING not in part)
