"""Whether a round left a working model, and after which round quality falls steeply."""

import math
from collections.abc import Iterator, Mapping, Sequence

from pruneflow.judge.retention import geometric_mean, perplexity_ratios, worst_ratio
from pruneflow.models.round_record import Drift, Health, Repetition, Validation
from pruneflow.settings.pipeline import HealthSettings

_STRAIGHT = 1e-9  # how far from its chord, in nats, a straight line may lie by rounding


def check_round(validation: Validation, drift: Drift, settings: HealthSettings) -> Health:
    """Hold a round's measures against the limits.

    Args:
        validation: losses of the dense model and the round's model.
        drift: how far the round's model has moved from the dense one.
        settings: the limits; a limit that is None is not checked.

    Returns:
        The verdict, and the measures as means over domains (the geometric mean for ratios). A
        measure that is not finite breaks its limit.

    Raises:
        InputError: the two models were measured on different domains or tokens.
    """
    ratios = perplexity_ratios(validation.dense, validation.pruned)
    domain, ratio = worst_ratio(ratios)
    entropy, repetition = drift.entropy, drift.repetition
    repeated = {"dense": _mean(repetition.dense), "pruned": _mean(repetition.pruned)}
    layer, moved = _most_moved(drift.norms)
    found = {
        "mean_ratio": geometric_mean(ratios),
        "worst_ratio": ratio,
        "kl": _mean(drift.kl),
        "top1_agreement": _mean(drift.top1_agreement),
        "repetition_rise": repeated["pruned"] - repeated["dense"],
        "entropy_drift": _mean(entropy.pruned) - _mean(entropy.dense),
        "norm_drift": moved,
    }
    reasons = list(_broken(found, settings, domain, layer))
    measures = _finite(found)
    rise = measures.pop("repetition_rise")
    return Health(
        healthy=not reasons,
        reasons=reasons,
        reason=_one_sentence(reasons, domain, ratio, settings),
        worst_domain=domain,
        norm_layer=layer,
        repetition=Repetition(**_finite(repeated), rise=rise),
        **measures,
    )


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Find the round after which quality falls steeply.

    It is the point farthest below the chord from the dense model, (0, 0), to the last round
    (Kneedle for a convex rising curve: Satopaa et al. 2011).

    Args:
        points: for each round, in order, the share of block weights removed (rising) and the
            logarithm of the mean perplexity ratio.

    Returns:
        Its place in `points`, or None: with fewer than three rounds, where nothing was lost, where
        a point lies above the chord (the curve is not convex), and where none lies below it (a
        straight line).
    """
    if len(points) < 3 or not all(math.isfinite(value) for point in points for value in point):
        return None
    last_share, last_loss = points[-1]
    if last_share <= 0 or last_loss <= 0:
        return None
    depths = [last_loss * share / last_share - loss for share, loss in points[:-1]]
    if min(depths) < -_STRAIGHT or max(depths) <= _STRAIGHT:
        return None
    return depths.index(max(depths))


def _broken(
    found: Mapping[str, float], settings: HealthSettings, domain: str, layer: int
) -> Iterator[str]:
    """Say what each limit that is set finds wrong."""
    highest = {
        "worst_ratio": (
            settings.max_perplexity_ratio,
            f"The worst domain, {domain}, has {{}} times the dense model's perplexity",
        ),
        "kl": (settings.max_kl, "KL from the dense model is {} nats per token"),
        "repetition_rise": (
            settings.max_repetition_rise,
            "The share of repeated 4-grams in greedy text rose by {}",
        ),
        "entropy_drift": (
            settings.max_entropy_drift,
            "The entropy of the next token changed by {} nats",
        ),
        "norm_drift": (
            settings.max_norm_drift,
            f"The log norm of the hidden states after layer {layer} changed by {{}}",
        ),
    }
    for name, (limit, sentence) in highest.items():
        moved = abs(found[name]) if name == "entropy_drift" else found[name]
        if limit is not None and not moved <= limit:  # so that NaN is beyond every limit
            yield f"{sentence.format(f'{found[name]:.4g}')}, beyond the limit of {limit:g}."
    lowest, agreement = settings.min_top1_agreement, found["top1_agreement"]
    if lowest is not None and not agreement >= lowest:
        yield (
            f"Both models predict the same most likely next token for {agreement:.4g} of the "
            f"tokens, below the limit of {lowest:g}."
        )


def _one_sentence(
    reasons: Sequence[str], domain: str, ratio: float, settings: HealthSettings
) -> str:
    if not reasons:
        return (
            f"The worst domain, {domain}, has {ratio:.4g} times the dense model's perplexity, "
            f"within the limit of {settings.max_perplexity_ratio:g}, and no other limit is broken."
        )
    if len(reasons) == 1:
        return reasons[0]
    more = len(reasons) - 1
    limits = "limit is" if more == 1 else "limits are"
    return f"{reasons[0].removesuffix('.')}, and {more} more {limits} broken."


def _most_moved(norms: Sequence[float]) -> tuple[int, float]:
    """The layer whose norm moved most, and by how much; one that is not finite moved most."""
    moves = [abs(norm) if math.isfinite(norm) else math.inf for norm in norms]
    layer = max(range(len(moves)), key=moves.__getitem__)
    return layer, moves[layer]


def _mean(by_domain: Mapping[str, float]) -> float:
    return sum(by_domain.values()) / len(by_domain)


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
