"""Allocation: which units are removed, in greedy steps, until the round's target is reached.

Layers in one pool keep the same widths: layout ``uniform`` has one pool of all layers (a step
removes the same number of units from every layer, the lowest-scored of each), ``per_layer`` has one
pool per layer. There are three kinds of steps: neurons down to the next multiple, one KV group with
its query heads, one query head of every KV group. The step with the lowest score per size is taken
first; ties break by index.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pruneflow.errors import InputError
from pruneflow.models.structure import Kind


@dataclass(frozen=True)
class LayerUnits:
    """Scores and sizes of the units of one layer, by kind.

    Attributes:
        scores: ``[units]``; the query heads of a KV group are neighbours.
        sizes: what removing one unit removes, in the unit of the target (block weights or
            parameters); a KV group includes its query heads.
    """

    scores: dict[Kind, Tensor]
    sizes: dict[Kind, int]


@dataclass(frozen=True)
class Limits:
    """Limits of what pruning may remove.

    Attributes:
        kinds: kinds of units that may be removed: ``neurons``, ``heads``, ``kv_groups``.
        neuron_multiple: neurons of a layer stay a multiple of this.
        neuron_floor: fewest neurons a layer may keep.
        attention: pairs (KV groups, heads per group) that a layer may keep; None for any.
    """

    kinds: Collection[str]
    neuron_multiple: int
    neuron_floor: int
    attention: Collection[tuple[int, int]] | None = None


@dataclass(frozen=True)
class Kept:
    """Indices of the units that stay, per layer.

    Attributes:
        neurons: ascending, ``[kept]`` each.
        heads: query heads, ``[groups kept, heads kept per group]`` each, ascending.
    """

    neurons: list[Tensor]
    heads: list[Tensor]


@dataclass(frozen=True)
class _Step:
    kind: str
    count: int
    size: int
    price: float  # score per size removed


class _Layer:
    """One layer while it shrinks: neurons in order of removal, and the heads that remain."""

    def __init__(self, units: LayerUnits) -> None:
        self.sizes = units.sizes
        ranked = torch.sort(units.scores["neurons"], stable=True)
        self.order: list[int] = ranked.indices.tolist()
        self.prefix = [0.0, *accumulate(ranked.values.tolist())]  # score of the n lowest neurons
        self.head_scores: list[float] = units.scores["heads"].tolist()
        self.group_scores: list[float] = units.scores["kv_groups"].tolist()
        self.width = len(self.head_scores) // len(self.group_scores)
        # Remaining heads, by remaining KV group.
        self.groups: list[list[int]] = (
            torch.arange(len(self.head_scores)).view(-1, self.width).tolist()
        )

    def group_worth(self, heads: list[int]) -> float:
        """Score of a KV group, reduced by the share of its heads that were removed."""
        group = heads[0] // self.width
        total = sum(self.head_scores[group * self.width : (group + 1) * self.width])
        remaining = sum(self.head_scores[head] for head in heads)
        return self.group_scores[group] * (remaining / total if total > 0 else 1.0)

    def lowest_groups(self, count: int) -> list[int]:
        """Positions of the `count` KV groups with the lowest scores."""
        worths = [self.group_worth(heads) for heads in self.groups]
        return sorted(sorted(range(len(worths)), key=worths.__getitem__)[:count])

    def lowest_heads(self, heads: list[int], count: int) -> list[int]:
        """The `count` heads of a KV group with the lowest scores."""
        return sorted(heads, key=lambda head: self.head_scores[head])[:count]


class _Pool:
    """Layers that keep the same widths."""

    def __init__(self, units: list[LayerUnits], limits: Limits) -> None:
        self.layers = [_Layer(layer) for layer in units]
        self.limits = limits
        self.removed = 0
        first = self.layers[0]
        self.neurons, self.groups, self.heads = len(first.order), len(first.groups), first.width
        self.steps = self._steps()

    def _steps(self) -> list[_Step]:
        steps = [self._neuron_step(), self._group_step(), self._head_step()]
        return [step for step in steps if step is not None]

    def _neuron_step(self) -> _Step | None:
        keep = (self.neurons - self.removed - 1) // self.limits.neuron_multiple
        keep *= self.limits.neuron_multiple
        if keep < self.limits.neuron_floor or "neurons" not in self.limits.kinds:
            return None
        count = self.neurons - self.removed - keep
        size = sum(count * layer.sizes["neurons"] for layer in self.layers)
        score = sum(
            layer.prefix[self.removed + count] - layer.prefix[self.removed] for layer in self.layers
        )
        return _Step("neurons", count, size, score / size)

    def _allowed(self, groups: int, heads: int) -> bool:
        return self.limits.attention is None or (groups, heads) in self.limits.attention

    def _group_step(self) -> _Step | None:
        lower = [n for n in range(self.groups - 1, 0, -1) if self._allowed(n, self.heads)]
        if not lower or "kv_groups" not in self.limits.kinds:
            return None
        count = self.groups - lower[0]
        size, score = 0, 0.0
        for layer in self.layers:
            removed_heads = layer.width - self.heads
            size += count * (layer.sizes["kv_groups"] - removed_heads * layer.sizes["heads"])
            score += sum(layer.group_worth(layer.groups[g]) for g in layer.lowest_groups(count))
        return _Step("kv_groups", count, size, score / size)

    def _head_step(self) -> _Step | None:
        lower = [r for r in range(self.heads - 1, 0, -1) if self._allowed(self.groups, r)]
        if not lower or "heads" not in self.limits.kinds:
            return None
        count = self.heads - lower[0]
        size = sum(count * self.groups * layer.sizes["heads"] for layer in self.layers)
        score = sum(
            layer.head_scores[head]
            for layer in self.layers
            for group in layer.groups
            for head in layer.lowest_heads(group, count)
        )
        return _Step("heads", count, size, score / size)

    def take(self, step: _Step) -> None:
        """Do a step in every layer of the pool."""
        if step.kind == "neurons":
            self.removed += step.count
        elif step.kind == "kv_groups":
            self.groups -= step.count
            for layer in self.layers:
                for position in reversed(layer.lowest_groups(step.count)):
                    del layer.groups[position]
        else:
            self.heads -= step.count
            for layer in self.layers:
                for group in layer.groups:
                    for head in layer.lowest_heads(group, step.count):
                        group.remove(head)
        self.steps = self._steps()


def allocate(
    units: Sequence[LayerUnits], pools: Sequence[Sequence[int]], limits: Limits, to_remove: int
) -> Kept:
    """Choose the units to keep, removing at least `to_remove` and overshooting by under one step.

    Args:
        units: scores and sizes of every layer.
        pools: layers that keep the same widths; a layer in no pool keeps all its units.
        limits: which kinds may be removed, and the floors.
        to_remove: total over all layers of the present model, in the unit of the sizes.

    Raises:
        InputError: the floors do not leave enough to remove.
    """
    working = [_Pool([units[index] for index in pool], limits) for pool in pools]
    removed = 0
    while removed < to_remove:
        steps = [(step, pool) for pool in working for step in pool.steps]
        if not steps:
            raise InputError(
                f"the target removes {to_remove:,} weights, but floors and protected layers allow "
                f"only {removed:,}: lower the ratio or pruning.min_neuron_share, or name "
                "more kinds in pruning.units"
            )
        # A coarse step must not overshoot the target by more than the finest one would.
        finest = min(step.size for step, _ in steps)
        fitting = [entry for entry in steps if removed + entry[0].size < to_remove + finest]
        step, pool = min(fitting, key=lambda entry: entry[0].price)
        pool.take(step)
        removed += step.size

    kept = Kept(
        [torch.arange(len(layer.scores["neurons"])) for layer in units],
        [
            torch.arange(len(layer.scores["heads"])).view(len(layer.scores["kv_groups"]), -1)
            for layer in units
        ],
    )
    for members, done in zip(pools, working, strict=True):
        for index, layer in zip(members, done.layers, strict=True):
            kept.neurons[index] = torch.tensor(sorted(layer.order[done.removed :]))
            kept.heads[index] = torch.tensor(layer.groups)
    return kept
