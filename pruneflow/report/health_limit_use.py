"""How much of each health limit a round used."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from pruneflow.models.round_record import Health
from pruneflow.report.number_format import MISSING, decimal, percent, times
from pruneflow.settings.pipeline import HealthSettings


class Use(NamedTuple):
    """One measure and its limit, ready to print.

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


def uses(health: Health, limits: HealthSettings) -> Iterator[Use]:
    """Yield each measure that has a limit and was taken.

    Args:
        health: of a round.
        limits: the settings' section ``health``.
    """
    rise = health.repetition.rise if health.repetition else None
    exact = partial(decimal, places=3)
    for measure, found, dense, limit, write, write_limit in (
        (
            "worst perplexity ratio",
            health.worst_ratio,
            1,
            limits.max_perplexity_ratio,
            times,
            times,
        ),
        ("KL, nats", health.kl, 0, limits.max_kl, exact, decimal),
        ("repetition rise", rise, 0, limits.max_repetition_rise, exact, decimal),
        ("entropy drift", health.entropy_drift, 0, limits.max_entropy_drift, exact, decimal),
        ("norm drift", health.norm_drift, 0, limits.max_norm_drift, exact, decimal),
        ("same token", health.top1_agreement, 1, limits.min_top1_agreement, percent, percent),
    ):
        if found is None or limit is None or limit == dense:
            continue
        moved = abs(found) if measure == "entropy drift" else found
        side = "at most" if limit > dense else "at least"
        share = max(0.0, (moved - dense) / (limit - dense))
        yield Use(measure, write(found), f"{side} {write_limit(limit)}", share)


def limits_sentence(limits: HealthSettings) -> str:
    """Return the limits of a round in one sentence."""
    parts = [
        f"worst perplexity ratio {times(limits.max_perplexity_ratio)}",
        f"KL {decimal(limits.max_kl)} nats",
        f"same token at least {percent(limits.min_top1_agreement)}",
        f"repetition rise {decimal(limits.max_repetition_rise)}",
        f"entropy drift {decimal(limits.max_entropy_drift)} nats",
        f"norm drift {decimal(limits.max_norm_drift)}",
    ]
    return ", ".join(part for part in parts if MISSING not in part)
