"""Order of the training sequences and learning-rate schedule: functions of seed and step."""

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
    """Yield (domain, row) endlessly.

    Each epoch of a domain is a new permutation of its rows. Domains are interleaved evenly
    (Webster's method), so that any stretch contains them by their weights (default 1). If `weights`
    is None, they are weighted by their sizes, and the epochs of all domains end together.
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
    """Yield the token ids of step 0, 1, ... endlessly, each ``[batch_sequences, T]``."""
    sizes = {name: len(rows) for name, rows in tokens.items()}
    order = sequence_order(sizes, weights, settings.seed)
    for step_rows in zip(*[order] * settings.batch_sequences, strict=False):
        yield torch.stack([tokens[name][row] for name, row in step_rows])


def learning_rate(step: int, steps: int, settings: RecoverySettings) -> float:
    """Learning rate of step `step` of `steps`: linear warmup, then cosine decay to the floor."""
    warmup = round(settings.warmup_share * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step + 1 - warmup) / (steps - warmup)
    share = settings.floor_share
    share += (1 - share) * (1 + math.cos(math.pi * done)) / 2
    return settings.learning_rate * share
