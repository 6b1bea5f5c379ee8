"""How far domains agree on which units matter."""

from statistics import mean
from typing import Any, NamedTuple


class Agreement(NamedTuple):
    """How one domain's ranking of units agrees with the others'; None where it is undefined.

    Attributes:
        neurons: mean correlation with the other domains.
        heads: the same of query heads.
        kv_groups: the same of key-value groups.
        alone: neurons that it alone needs.
        correlations: of neurons, by other domain.
    """

    neurons: float | None
    heads: float | None
    kv_groups: float | None
    alone: int
    correlations: dict[str, float | None]


def agreement(disagreement: dict[str, Any]) -> dict[str, Agreement]:
    """Return how each domain agrees with the others, from a round's ``disagreement.json``."""
    kinds = disagreement["kinds"]
    found = {}
    for name in disagreement["domains"]:
        pairs = {kind: _with_others(kinds[kind]["correlations"], name) for kind in kinds}
        means = {kind: _mean(pairs[kind]) for kind in ("neurons", "heads", "kv_groups")}
        alone = kinds["neurons"]["only_one_domain"][name]["units"]
        found[name] = Agreement(**means, alone=alone, correlations=pairs["neurons"])
    return found


def _with_others(pairs: list[dict[str, Any]], name: str) -> dict[str, float | None]:
    return {
        other: pair["within_layers"]
        for pair in pairs
        if name in pair["domains"]
        for other in pair["domains"]
        if other != name
    }


def _mean(correlations: dict[str, float | None]) -> float | None:
    known = [value for value in correlations.values() if value is not None]
    return mean(known) if known else None
