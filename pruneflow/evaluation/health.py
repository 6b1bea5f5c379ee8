"""Whether a round left a working model behind."""

import math
from collections.abc import Mapping
from typing import Any

from pruneflow.config import HealthSettings
from pruneflow.evaluation.perplexity import DomainLoss
from pruneflow.evaluation.retention import perplexity_ratios, worst_ratio


def check_round(
    dense_perplexity: Mapping[str, DomainLoss],
    pruned_perplexity: Mapping[str, DomainLoss],
    settings: HealthSettings,
) -> dict[str, Any]:
    """Compare a round's validation perplexity with the dense model's, domain by domain.

    Returns:
        ``healthy``, the ``worst_domain`` and its ``worst_ratio`` (None when it is not finite), and
        a one-sentence ``reason``.

    Raises:
        InputError: the two were measured on different domains or tokens.
    """
    domain, ratio = worst_ratio(perplexity_ratios(dense_perplexity, pruned_perplexity))
    limit = settings.max_perplexity_ratio
    healthy = math.isfinite(ratio) and ratio <= limit
    relation = "within" if healthy else "above"
    return {
        "healthy": healthy,
        "worst_domain": domain,
        "worst_ratio": ratio if math.isfinite(ratio) else None,
        "reason": f"The worst domain, {domain}, has {ratio:.4g} times the dense model's "
        f"perplexity, {relation} the limit of {limit:g}.",
    }
