"""How much of each health limit a round used."""

from collections.abc import Iterator
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
    ratio, most = health.worst_ratio, limits.max_perplexity_ratio
    if ratio is not None and most is not None:
        share = (ratio - 1) / (most - 1)
        yield Use("worst perplexity ratio", times(ratio), f"at most {times(most)}", max(0.0, share))
    rise = health.repetition.rise if health.repetition else None
    entropy = health.entropy_drift
    for measure, value, moved, limit in (
        ("KL, nats", health.kl, health.kl, limits.max_kl),
        ("repetition rise", rise, rise, limits.max_repetition_rise),
        ("entropy drift", entropy, abs(entropy or 0.0), limits.max_entropy_drift),
        ("norm drift", health.norm_drift, health.norm_drift, limits.max_norm_drift),
    ):
        if value is not None and moved is not None and limit:
            share = max(0.0, moved) / limit
            yield Use(measure, decimal(value, 3), f"at most {decimal(limit)}", share)
    agreed, least = health.top1_agreement, limits.min_top1_agreement
    if agreed is not None and least is not None and least < 1:
        share = (1 - agreed) / (1 - least)
        yield Use("same token", percent(agreed), f"at least {percent(least)}", share)


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
