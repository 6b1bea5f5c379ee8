"""Which units go: greedy steps by score per weight removed, the same widths in every layer.

A step removes the same number of neurons from every layer, each layer its own lowest, or one KV
group from every layer. The cheapest step by score per weight goes first, until the round's
target is reached. Ties break by index.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneflow.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Costs:
    """Weights that one unit of a layer takes with it, and the counts that are possible.

    Attributes:
        neuron_weights: weights of one neuron of one layer.
        group_weights: weights of one KV group of one layer.
        neuron_multiple: neurons of a layer stay a multiple of this (the last step may reach it).
        neuron_floor: fewest neurons a layer may keep.
        allowed_groups: KV group counts that the family's configuration accepts, rising; a single
            one keeps attention whole.
    """

    neuron_weights: int
    group_weights: int
    neuron_multiple: int
    neuron_floor: int
    allowed_groups: list[int]


@dataclass(frozen=True)
class Kept:
    """Indices of the units that stay, rising, per layer."""

    neurons: list["torch.Tensor"]
    kv_groups: list["torch.Tensor"]


@dataclass(frozen=True)
class _Step:
    neurons: int
    groups: int
    weights: int
    cost: float


def allocate_uniform(
    neurons: list["torch.Tensor"],
    kv_groups: list["torch.Tensor"],
    costs: Costs,
    weights_to_remove: int,
) -> Kept:
    """Choose what to keep so that at least `weights_to_remove` go, overshooting by under one step.

    Args:
        neurons: combined score per layer, ``[neurons]``, the same length in each layer.
        kv_groups: combined score per layer, ``[groups]``.
        costs: what units weigh and which counts are possible.
        weights_to_remove: over all layers, from the present model.

    Raises:
        InputError: the floors do not leave enough to remove.
    """
    import torch

    layers = len(neurons)
    orders = [torch.sort(t, stable=True).indices for t in neurons]
    group_orders = [torch.sort(t, stable=True).indices for t in kv_groups]
    # Score of removing the n lowest of every layer, for every n.
    neuron_sums = _prefix_sums(neurons)
    group_sums = _prefix_sums(kv_groups)
    width, groups = len(neurons[0]), len(kv_groups[0])
    gone, gone_groups, removed = 0, 0, 0

    while removed < weights_to_remove:
        steps = []
        keep = (width - gone - 1) // costs.neuron_multiple * costs.neuron_multiple
        if keep >= costs.neuron_floor:
            count = width - gone - keep
            weights = layers * count * costs.neuron_weights
            cost = (neuron_sums[gone + count] - neuron_sums[gone]) / weights
            steps.append(_Step(count, 0, weights, cost))
        lower = [n for n in costs.allowed_groups if n < groups - gone_groups]
        if lower:
            count = groups - gone_groups - lower[-1]
            weights = layers * count * costs.group_weights
            cost = (group_sums[gone_groups + count] - group_sums[gone_groups]) / weights
            steps.append(_Step(0, count, weights, cost))
        if not steps:
            raise InputError(
                f"the target asks for {weights_to_remove:,} weights to go, but the floors leave "
                f"only {removed:,}: lower the ratio or pruning.min_neuron_share"
            )
        # A coarse step must not overshoot the target by more than the finest one would.
        finest = min(step.weights for step in steps)
        fitting = [s for s in steps if removed + s.weights < weights_to_remove + finest]
        best = min(fitting, key=lambda step: step.cost)
        gone, gone_groups = gone + best.neurons, gone_groups + best.groups
        removed += best.weights

    return Kept(
        [order[gone:].sort().values for order in orders],
        [order[gone_groups:].sort().values for order in group_orders],
    )


def _prefix_sums(scores: list["torch.Tensor"]) -> list[float]:
    import torch

    lowest_first = torch.stack([torch.sort(t).values for t in scores]).sum(0)
    return [0.0, *torch.cumsum(lowest_first, 0).tolist()]
