"""Which sequence is trained on when, and at what rate: pure functions of the seed and the step."""

import heapq
import math
import random
from collections.abc import Iterator
from itertools import count

import torch

from pruneflow.settings.recovery import RecoverySettings


def sequence_order(
    sizes: dict[str, int], weights: dict[str, float] | None, seed: int
) -> Iterator[tuple[str, int]]:
    """Yield (domain, row) without end.

    A domain's rows come in epochs, each a permutation of its own: none comes twice before all
    have come once. Domains are interleaved evenly (Webster's rule), so that every stretch holds
    each by its share. Where shares are sizes, all domains' epochs end together.

    Args:
        sizes: sequences of each domain.
        weights: share of a domain relative to the others, 1 when absent; None for their sizes.
        seed: of the permutations.
    """
    streams = [
        _domain_order(index, name, size, size if weights is None else weights.get(name, 1.0), seed)
        for index, (name, size) in enumerate(sizes.items())
    ]
    for _, _, name, row in heapq.merge(*streams):
        yield name, row


def _domain_order(
    index: int, name: str, size: int, share: float, seed: int
) -> Iterator[tuple[float, int, str, int]]:
    for epoch in count():
        rows = list(range(size))
        random.Random(f"{name}/{epoch}:{seed}").shuffle(rows)
        for position, row in enumerate(rows, epoch * size):
            yield (position + 0.5) / share, index, name, row


def batches(
    tokens: dict[str, torch.Tensor],
    weights: dict[str, float] | None,
    settings: RecoverySettings,
) -> Iterator[torch.Tensor]:
    """Yield the token ids of step 0, 1, ... without end, each ``[batch_sequences, T]``."""
    sizes = {name: len(rows) for name, rows in tokens.items()}
    order = sequence_order(sizes, weights, settings.seed)
    for step_rows in zip(*[order] * settings.batch_sequences, strict=False):
        yield torch.stack([tokens[name][row] for name, row in step_rows])


def learning_rate(step: int, steps: int, settings: RecoverySettings) -> float:
    """The rate of step `step` of `steps`: a straight rise, then half a cosine to the floor."""
    rise = round(settings.warmup_share * steps)
    if step < rise:
        return settings.learning_rate * (step + 1) / rise
    done = (step + 1 - rise) / (steps - rise)
    share = settings.floor_share
    share += (1 - share) * (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * share
