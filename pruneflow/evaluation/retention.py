"""How much of the dense model is left: perplexity ratios, and accuracy ratios with intervals."""

import math
from collections.abc import Mapping, Sequence

from pruneflow.errors import InputError
from pruneflow.evaluation.perplexity import DomainLoss

CONFIDENCE = 0.95


def perplexity_ratios(
    dense: Mapping[str, DomainLoss], pruned: Mapping[str, DomainLoss]
) -> dict[str, float]:
    """Return pruned perplexity over dense perplexity for each domain; 1 is no loss.

    Raises:
        InputError: the two were measured on different domains or tokens.
    """
    if set(dense) != set(pruned):
        different = sorted(set(dense) ^ set(pruned))[0]
        raise InputError(
            f"dense and pruned model were not measured on the same domains ({different}): "
            "run both evaluations again"
        )
    if not dense:
        raise InputError("no domain was measured: name some in documents.domains")
    for domain in dense:
        if dense[domain]["tokens"] != pruned[domain]["tokens"]:
            raise InputError(
                f"dense and pruned model were scored on different numbers of tokens of {domain} "
                f"({dense[domain]['tokens']} and {pruned[domain]['tokens']}): "
                "run both evaluations again"
            )
    return {domain: pruned[domain]["perplexity"] / dense[domain]["perplexity"] for domain in dense}


def geometric_mean(ratios: Mapping[str, float]) -> float:
    """Return the geometric mean of the ratios, so that no domain counts more than another."""
    return math.exp(math.fsum(math.log(ratio) for ratio in ratios.values()) / len(ratios))


def worst_ratio(ratios: Mapping[str, float]) -> tuple[str, float]:
    """Return the domain that suffered most and its ratio; a ratio that is not finite is worst."""

    def badness(domain: str) -> float:
        return ratios[domain] if math.isfinite(ratios[domain]) else math.inf

    domain = max(ratios, key=badness)
    return domain, ratios[domain]


def retention(
    dense_correct: Sequence[int], pruned_correct: Sequence[int], samples: int, seed: int
) -> dict[str, float | None]:
    """Compare two models' answers to the same questions.

    The interval is a paired percentile bootstrap: questions are drawn with both models' answers
    together, so that what is hard for both does not widen it. A draw of questions is fully
    described by how many were right for both, for one or for neither, and these four counts are
    multinomial: drawing them is the same bootstrap without the loop over questions.

    Args:
        dense_correct: 1 or 0 for each question, in the order of the file.
        pruned_correct: the same questions in the same order.
        samples: bootstrap resamples.
        seed: of the draws.

    Returns:
        Accuracies ``dense`` and ``pruned``, their ratio ``retention``, and the ends ``low`` and
        ``high`` of its 95 % interval. These three are None, not measurable, when the dense model
        has nothing right.

    Raises:
        InputError: the lists differ in length or are empty.
    """
    import numpy as np

    if len(dense_correct) != len(pruned_correct):
        raise InputError(
            f"dense and pruned model answered different questions ({len(dense_correct)} and "
            f"{len(pruned_correct)}): run both evaluations again"
        )
    both = np.asarray([dense_correct, pruned_correct], dtype=int)
    count = both.shape[1]
    right_dense, right_pruned = (int(right) for right in both.sum(axis=1))
    accuracies = {"dense": right_dense / count, "pruned": right_pruned / count}
    if right_dense == 0:
        return {**accuracies, "retention": None, "low": None, "high": None}
    right_both = int(both.prod(axis=0).sum())
    cells = np.array(
        [
            right_both,
            right_dense - right_both,
            right_pruned - right_both,
            count - right_dense - right_pruned + right_both,
        ]
    )
    draws = np.random.default_rng(seed).multinomial(count, cells / count, size=samples)
    dense, pruned = draws[:, 0] + draws[:, 1], draws[:, 0] + draws[:, 2]
    defined = dense > 0
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(pruned[defined] / dense[defined], [tail, 1 - tail])
    return {
        **accuracies,
        "retention": right_pruned / right_dense,
        "low": float(low),
        "high": float(high),
    }
