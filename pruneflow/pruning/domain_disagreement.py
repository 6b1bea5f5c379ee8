"""How much the domains of a calibration set disagree about which units matter."""

from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from pruneflow.pruning.scores import Scores
from pruneflow.pruning.unit_recorder import KINDS

EXAMPLES = 5  # units named for each domain and kind, at most


def disagreement(scores: Scores) -> dict[str, Any]:
    """Report rank correlations between domains, and units that only one domain needs.

    Ranks do not change when a domain's scores are scaled, so these are the raw scores.

    Returns:
        JSON-able: ``domains``; ``kinds``, by kind, with ``correlations``, a list of
        ``{"domains": [a, b], "pooled": over the units of all layers, "within_layers": mean over
        layers}`` (Spearman, None where undefined), and ``only_one_domain``, by domain
        ``{"units": count, "share": of all units, "examples": [[layer, unit], ...]}``, those
        with the widest gap in rank first.
    """
    arrays = {kind: [layer.numpy() for layer in scores.units[kind]] for kind in KINDS}
    return {
        "domains": list(scores.domains),
        "kinds": {
            kind: {
                "correlations": _correlations(scores.domains, layers),
                "only_one_domain": _only_one_domain(scores.domains, layers),
            }
            for kind, layers in arrays.items()
        },
    }


def _correlations(domains: list[str], layers: list[np.ndarray]) -> list[dict[str, Any]]:
    pooled = np.concatenate(layers, axis=1)
    pairs = []
    for a, b in combinations(range(len(domains)), 2):
        by_layer = [_spearman(values[a], values[b]) for values in layers]
        defined = [rho for rho in by_layer if rho is not None]
        pairs.append(
            {
                "domains": [domains[a], domains[b]],
                "pooled": _spearman(pooled[a], pooled[b]),
                "within_layers": float(np.mean(defined)) if defined else None,
            }
        )
    return pairs


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation, or None where one side does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def _only_one_domain(domains: list[str], layers: list[np.ndarray]) -> dict[str, dict[str, Any]]:
    """Units in their layer's top quarter by one domain and in the bottom half by all others.

    A layer of two or three units has a top quarter of one; tied units are taken as low at the top
    and as high at the bottom, so that a tie never counts as a need.
    """
    found: dict[str, list[tuple[float, int, int]]] = {domain: [] for domain in domains}
    for index, values in enumerate(layers):
        units = values.shape[1]
        ranks = rankdata(values, "min", axis=1)
        top = ranks > units - max(1, units // 4)
        bottom = rankdata(values, "max", axis=1) <= units // 2
        for row, domain in enumerate(domains):
            others = np.delete(bottom, row, axis=0)
            alone = top[row] & others.all(0) & (len(others) > 0)
            for unit in np.flatnonzero(alone).tolist():
                gap = (ranks[row, unit] - np.delete(ranks[:, unit], row).max()) / units
                found[domain].append((-float(gap), index, unit))
    total = sum(values.shape[1] for values in layers)
    return {
        domain: {
            "units": len(alone),
            "share": len(alone) / total,
            "examples": [[index, unit] for _, index, unit in sorted(alone)[:EXAMPLES]],
        }
        for domain, alone in found.items()
    }
