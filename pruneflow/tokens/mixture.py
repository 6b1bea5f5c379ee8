"""The domain mixture: requested shares or tokens as numbers of sequences."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pruneflow.errors import InputError
from pruneflow.settings.calibration import MAX_SHARE_ERROR, CalibrationSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixture:
    """Sequences of each domain in a round without feedback.

    Attributes:
        shares: requested share by domain, summing to 1.
        counts: sequences by domain.
    """

    shares: dict[str, float]
    counts: dict[str, int]

    @classmethod
    def of(cls, settings: CalibrationSettings, domains: list[str]) -> Self:
        """Convert the settings: `sequences` and `weights`, or `tokens` per domain.

        Raises:
            InputError: a domain has no sequence, or rounding changes its share by more than
                `MAX_SHARE_ERROR`.
        """
        if settings.tokens:
            amounts = {name: float(settings.tokens[name]) for name in domains}
            length = settings.sequence_length
            counts = {name: round(tokens / length) for name, tokens in amounts.items()}
            fix = "raise calibration.tokens or lower calibration.sequence_length"
        else:
            weights = settings.weights or dict.fromkeys(domains, 1.0)
            amounts = {name: weights[name] for name in domains}
            assert settings.sequences is not None  # validated: either tokens or sequences is set
            counts = divide(settings.sequences, amounts)
            fix = "raise calibration.sequences"
        mixture = cls(_shares(amounts), counts)
        mixture._check(fix)
        return mixture

    @property
    def measured(self) -> dict[str, float]:
        """Actual share of each domain in the calibration tokens (sequences have one length)."""
        return _shares(self.counts)

    @property
    def weights(self) -> dict[str, float]:
        """The shares as weights with mean 1, as the scores of a round expect."""
        mean = math.fsum(self.shares.values()) / len(self.shares)
        return {name: share / mean for name, share in self.shares.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """The mixture as recorded in manifests."""
        return {"shares": self.shares, "counts": self.counts, "measured": self.measured}

    def _check(self, fix: str) -> None:
        """Check that rounding to sequences leaves the shares close to the requested ones."""
        measured, total = self.measured, sum(self.counts.values())
        for name, requested in self.shares.items():
            if self.counts[name] == 0:
                raise InputError(
                    f"domain {name} gets none of the {total} calibration sequences: {fix}, "
                    "or give it a larger share"
                )
            if abs(measured[name] - requested) > MAX_SHARE_ERROR:
                raise InputError(
                    f"domain {name} would be {measured[name]:.1%} of the {total} calibration "
                    f"sequences instead of the requested {requested:.1%}: {fix}"
                )

    def reweighed(
        self, weights: Mapping[str, float], available: Mapping[str, int]
    ) -> dict[str, int]:
        """Sequences by domain for other weights, with the same total.

        The count of a domain grows by the same factor as its weight, up to the available sequences;
        the remainder goes to the other domains. Every domain keeps at least one sequence. The
        mixture's own weights give `counts`.

        Args:
            weights: relative weight of every domain.
            available: stored sequences of every domain, at least `counts`.

        Raises:
            InputError: the weights are for other domains.
        """
        if set(weights) != set(self.counts):
            wrong = sorted(set(weights) ^ set(self.counts))[0]
            raise InputError(
                f"the weights and the calibration set do not have the same domains ({wrong} is "
                "only in one of them): give a weight for every domain of the set"
            )
        before = self.weights
        ideal = {name: self.counts[name] * weights[name] / before[name] for name in self.counts}
        counts = _divide_within(sum(self.counts.values()), ideal, available)
        unlimited = divide(sum(self.counts.values()), ideal)
        for name, count in counts.items():
            if unlimited[name] > available[name]:
                log.warning(
                    "domain %s should get %d calibration sequences and only %d are stored: raise "
                    "calibration.reserve, or add sources to it (other domains get more instead)",
                    name,
                    unlimited[name],
                    count,
                )
        return counts


def divide(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide `total` in proportion to `weights`, by largest remainders; ties go by name."""
    weight_sum = math.fsum(weights.values())
    # Rounded to nine digits, so that floating-point errors do not break ties.
    exact = {name: round(total * weight / weight_sum, 9) for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _divide_within(
    total: int, weights: Mapping[str, float], most: Mapping[str, int]
) -> dict[str, int]:
    """Divide `total` by `weights`, each part at least 1 and at most that of `most`."""
    full: dict[str, int] = {}
    while free := {name: weight for name, weight in weights.items() if name not in full}:
        counts = _divide_at_least_one(total - sum(full.values()), free)
        above = {name: most[name] for name, count in counts.items() if count > most[name]}
        if not above:
            return {name: {**counts, **full}[name] for name in weights}
        full |= above
    return full


def _divide_at_least_one(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide `total`, which is at least the number of weights, into parts of at least 1."""
    least: dict[str, int] = {}
    while True:
        free = {name: weight for name, weight in weights.items() if name not in least}
        counts = divide(total - len(least), free)
        none = [name for name, count in counts.items() if count == 0]
        if not none:
            return counts | least
        least |= dict.fromkeys(none, 1)


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()}
