"""How much of each domain: shares or tokens asked for, as whole sequences."""

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
    """How the sequences of a round are divided among domains while no feedback moves them.

    Attributes:
        shares: what was asked for by domain, together 1.
        counts: sequences by domain.
    """

    shares: dict[str, float]
    counts: dict[str, int]

    @classmethod
    def of(cls, settings: CalibrationSettings, domains: list[str]) -> Self:
        """Turn the settings into sequences: `sequences` by `weights`, or `tokens` of each domain.

        Raises:
            InputError: a domain is left without a sequence, or its share is off by more than
                `MAX_SHARE_ERROR`, for sequences are whole.
        """
        if settings.tokens:
            length = settings.sequence_length
            counts = {name: round(settings.tokens[name] / length) for name in domains}
            mixture = cls(_shares({name: settings.tokens[name] for name in domains}), counts)
            mixture.check("raise calibration.tokens or lower calibration.sequence_length")
            return mixture
        weights = settings.weights or dict.fromkeys(domains, 1.0)
        assert settings.sequences is not None  # the settings have either
        return cls.divided(settings.sequences, {name: weights[name] for name in domains})

    @classmethod
    def divided(cls, sequences: int, weights: Mapping[str, float]) -> Self:
        """Divide `sequences` in proportion to `weights`.

        Raises:
            InputError: as in `of`.
        """
        mixture = cls(_shares(weights), divide(sequences, weights))
        mixture.check("raise calibration.sequences")
        return mixture

    @classmethod
    def held(cls, counts: dict[str, int]) -> Self:
        """The mixture of a set of which every sequence is used."""
        return cls(_shares(counts), counts)

    @property
    def measured(self) -> dict[str, float]:
        """Share of each domain in the calibration tokens: sequences are of one length."""
        return _shares(self.counts)

    @property
    def weights(self) -> dict[str, float]:
        """The shares as weights whose mean is 1, which is what a round's scores take."""
        mean = math.fsum(self.shares.values()) / len(self.shares)
        return {name: share / mean for name, share in self.shares.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"shares": self.shares, "counts": self.counts, "measured": self.measured}

    def check(self, way_out: str) -> None:
        """Check that whole sequences come close to what was asked for.

        Raises:
            InputError: names the domain, and `way_out`.
        """
        measured, total = self.measured, sum(self.counts.values())
        for name, asked in self.shares.items():
            if self.counts[name] == 0:
                raise InputError(
                    f"domain {name} gets none of the {total} calibration sequences: {way_out}, "
                    "or give it a larger share"
                )
            if abs(measured[name] - asked) > MAX_SHARE_ERROR:
                raise InputError(
                    f"domain {name} would be {measured[name]:.1%} of the {total} calibration "
                    f"sequences, and {asked:.1%} is asked for: {way_out}"
                )

    def reweighed(self, weights: Mapping[str, float], held: Mapping[str, int]) -> dict[str, int]:
        """Sequences by domain for other weights, as many over all domains as before.

        A domain whose weight grew by a factor gets more by that factor, but no more than is held
        of it; others get what it cannot take. Every domain keeps at least one. The weights of the
        mixture itself give `counts`.

        Args:
            weights: of every domain; only proportions matter.
            held: sequences there are of every domain, at least `counts`.

        Raises:
            InputError: the weights are of other domains.
        """
        if set(weights) != set(self.counts):
            wrong = sorted(set(weights) ^ set(self.counts))[0]
            raise InputError(
                f"the weights and the calibration set do not have the same domains ({wrong} is in "
                "one alone): give a weight for every domain of the set"
            )
        before = self.weights
        wanted = {name: self.counts[name] * weights[name] / before[name] for name in self.counts}
        counts = _divide_within(sum(self.counts.values()), wanted, held)
        unlimited = divide(sum(self.counts.values()), wanted)
        for name, count in counts.items():
            if unlimited[name] > held[name]:
                log.warning(
                    "domain %s should get %d calibration sequences and %d are held: raise "
                    "calibration.reserve, or add sources to it (others take what is missing)",
                    name,
                    unlimited[name],
                    count,
                )
        return counts


def divide(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide `total` in proportion to `weights`: largest remainders, the first name on a tie."""
    whole = math.fsum(weights.values())
    # Nine digits: what rounding errors make of equal remainders decides nothing.
    exact = {name: round(total * weight / whole, 9) for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _divide_within(
    total: int, weights: Mapping[str, float], most: Mapping[str, int]
) -> dict[str, int]:
    """Divide `total` by `weights`, each at least 1 and at most what `most` says."""
    full: dict[str, int] = {}
    while free := {name: weight for name, weight in weights.items() if name not in full}:
        counts = _divide_to_all(total - sum(full.values()), free)
        beyond = {name: most[name] for name, count in counts.items() if count > most[name]}
        if not beyond:
            return {name: {**counts, **full}[name] for name in weights}
        full |= beyond
    return full


def _divide_to_all(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Divide `total`, at least as many as there are weights, so that each gets at least 1."""
    least: dict[str, int] = {}
    while True:
        free = {name: weight for name, weight in weights.items() if name not in least}
        counts = divide(total - len(least), free)
        none = [name for name, count in counts.items() if count == 0]
        if not none:
            return counts | least
        least |= dict.fromkeys(none, 1)


def _shares(amounts: Mapping[str, float]) -> dict[str, float]:
    whole = math.fsum(amounts.values())
    return {name: amount / whole for name, amount in amounts.items()}
