"""Common parts of the reimplemented methods: unit counts, statistics and the pruning itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pruneflow.errors import InputError
from pruneflow.models.structure import Layer, block_weights, layers_of, matrix
from pruneflow.models.surgery import cut_heads, cut_neurons, set_columns
from pruneflow.progress import track
from pruneflow.pruning.block_stream import BlockStream, split

Blocks = dict[str, Tensor]  # calibration token ids by domain, [sequences, length]
Kind = Literal["neurons", "kv_groups"]
KINDS: tuple[Kind, ...] = ("kv_groups", "neurons")
NEURON_FLOOR = 0.1


@dataclass(frozen=True)
class Choice:
    """The units of one layer to keep.

    Attributes:
        keep: indices of the units to keep, ascending.
        weight: new weights of their columns in the consumer, ``[d_out, kept]``; None: unchanged.
    """

    keep: Tensor
    weight: Tensor | None = None


def uniform_counts(
    layers: list[Layer], weights: int, ratio: float, attention: bool
) -> tuple[int, int]:
    """Neurons and KV groups to remove from every layer, for a ratio of at least `ratio`.

    With `attention`, the share of KV groups is `ratio`, rounded; neurons make up the rest.
    """
    first = layers[0]
    groups = min(round(ratio * first.kv_groups), first.kv_groups - 1) if attention else 0
    rest = ratio * weights / len(layers) - groups * first.unit_weights("kv_groups")
    neurons = max(0, math.ceil(rest / first.unit_weights("neurons") - 1e-9))
    most = first.neurons - math.ceil(NEURON_FLOOR * first.neurons)
    if neurons > most:
        raise InputError(
            f"ratio {ratio:g} would remove {neurons} of {first.neurons} neurons of every layer, "
            f"and at most {most} are allowed: lower it, or prune attention, too"
        )
    return neurons, groups


def cut_uniformly(
    model: PreTrainedModel, ratio: float, attention: bool, score: Callable[[Layer, Kind], Tensor]
) -> float:
    """Keep the units with the highest scores, equally many in each layer; returns the ratio."""
    layers = layers_of(model)
    before = block_weights(model)
    neurons, groups = uniform_counts(layers, before, ratio, attention)
    for layer in layers:
        for kind, removed in zip(KINDS, (groups, neurons), strict=True):
            if removed:
                cut_units(layer, kind, best(score(layer, kind), units_of(layer, kind) - removed))
    return 1 - block_weights(model) / before


def cut_layer_by_layer(
    model: PreTrainedModel,
    blocks: Blocks,
    ratio: float,
    attention: bool,
    batch_tokens: int,
    choose: Callable[[Tensor, Tensor, int, int], Choice],
    label: str,
) -> float:
    """Prune equally many units of each layer, on the activations of the preceding pruned layers.

    `choose` is called with the consumer's matrix ``[d_out, m]``, its ``H = X^T X`` ``[m, m]``, the
    number of columns per unit and the number of units to keep; attention comes before the MLP.
    """
    layers = layers_of(model)
    before = block_weights(model)
    neurons, groups = uniform_counts(layers, before, ratio, attention)
    stream = BlockStream(model, layers, split(torch.cat(list(blocks.values())), batch_tokens))
    for layer in track(layers, label):
        for kind, removed in zip(KINDS, (groups, neurons), strict=True):
            if not removed:
                continue
            units, consumer = units_of(layer, kind), consumer_of(layer, kind)
            gram = stream.gram(layer, consumer)
            choice = choose(matrix(consumer), gram, len(gram) // units, units - removed)
            cut_units(layer, kind, choice.keep)
            if choice.weight is not None:
                set_columns(consumer, choice.weight)
        stream.advance(layer)
    return 1 - block_weights(model) / before


def cut_units(layer: Layer, kind: Kind, keep: Tensor) -> None:
    """Remove all other units of a layer in place; KV groups keep all their query heads."""
    if kind == "neurons":
        cut_neurons(layer, keep.cpu())
    else:
        cut_heads(layer, torch.arange(layer.heads).view(layer.kv_groups, -1)[keep.cpu()])


def cut_globally(
    model: PreTrainedModel,
    ratio: float,
    score: Callable[[Layer, Kind], Tensor],
    cut: Callable[[Layer, Kind, Tensor], None] = cut_units,
) -> float:
    """Remove the units with the lowest scores of all layers until enough weights are removed.

    Args:
        model: pruned in place.
        ratio: share of block weights to remove.
        score: scores of a layer's units of one kind, ``[units]``.
        cut: removes all units of a layer but those with the given indices.

    Returns:
        The actual ratio.

    Raises:
        InputError: the minimum widths do not leave enough to remove.
    """
    layers = layers_of(model)
    before = block_weights(model)
    to_remove = round(ratio * before)
    spare = {("kv_groups", layer.index): layer.kv_groups - 1 for layer in layers} | {
        ("neurons", layer.index): layer.neurons - math.ceil(NEURON_FLOOR * layer.neurons)
        for layer in layers
    }
    stays: dict[tuple[Kind, int], Tensor] = {}
    ranked: list[tuple[float, Kind, int, int]] = []
    for kind in KINDS:
        for layer in layers:
            scores = score(layer, kind).tolist()
            stays[kind, layer.index] = torch.ones(len(scores), dtype=torch.bool)
            ranked += [(value, kind, layer.index, unit) for unit, value in enumerate(scores)]
    removed = 0
    for _, kind, index, unit in sorted(ranked):
        if removed >= to_remove:
            break
        if spare[kind, index] == 0:
            continue
        spare[kind, index] -= 1
        stays[kind, index][unit] = False
        removed += layers[index].unit_weights(kind)
    if removed < to_remove:
        raise InputError(
            f"{to_remove:,} weights must be removed, but only {removed:,} are allowed: lower the "
            "ratio"
        )
    for layer in layers:
        for kind in KINDS:
            if not stays[kind, layer.index].all():
                cut(layer, kind, stays[kind, layer.index].nonzero().flatten())
    return 1 - block_weights(model) / before


def best(scores: Tensor, keep: int) -> Tensor:
    """Indices of the `keep` highest scores, ascending; of two equal ones the later is kept."""
    return scores.argsort(stable=True)[len(scores) - keep :].sort().values


@dataclass
class Moments:
    """Sums over tokens of the channels of one input, ``[m]`` float64."""

    tokens: int
    total: Tensor
    squares: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of each channel."""
        return self.total / self.tokens

    @property
    def variance(self) -> Tensor:
        """Variance of each channel, over tokens."""
        return (self.squares / self.tokens - self.mean.square()).clamp_min(0)


def consumer_moments(
    model: PreTrainedModel, layers: list[Layer], blocks: Blocks, batch_tokens: int
) -> dict[tuple[Kind, int], Moments]:
    """Mean and variance over tokens of the inputs of all consumers, in one forward pass."""
    found: dict[tuple[Kind, int], Moments] = {}

    def watch(kind: Kind, index: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def before(_module: Any, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].flatten(0, -2).double()
            moments = found.setdefault((kind, index), Moments(0, x.new_zeros(()), x.new_zeros(())))
            moments.tokens += len(x)
            moments.total = moments.total + x.sum(0)
            moments.squares = moments.squares + x.square().sum(0)

        return before

    handles = [
        consumer_of(layer, kind).register_forward_pre_hook(watch(kind, layer.index))
        for layer in layers
        for kind in KINDS
    ]
    try:
        with torch.no_grad():
            for batch in track(batches_of(blocks, batch_tokens), "flap"):
                model.base_model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def weight_gradients(
    model: PreTrainedModel, layers: list[Layer], blocks: Blocks, batch_tokens: int
) -> dict[torch.nn.Module, Tensor]:
    """Gradients of the mean loss for all block matrices, accumulated in float32 or wider."""
    gradients: dict[torch.nn.Module, Tensor] = {}
    total = sum(len(tokens) for tokens in blocks.values())

    def collect(linear: torch.nn.Module) -> Callable[[Tensor], None]:
        def after(weight: Tensor) -> None:
            assert weight.grad is not None
            gradients[linear].add_(weight.grad)
            weight.grad = None

        return after

    handles = []
    linears = {m.linear for layer in layers for kind in KINDS for m in layer.members(kind)}
    for linear in linears:
        weight = linear.weight.requires_grad_(True)
        wide = torch.promote_types(weight.dtype, torch.float32)
        gradients[linear] = torch.zeros_like(weight, dtype=wide, requires_grad=False)
        handles.append(weight.register_post_accumulate_grad_hook(collect(linear)))
    try:
        for batch in track(batches_of(blocks, batch_tokens), "llm-pruner"):
            ids = batch.to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            wide = torch.promote_types(logits.dtype, torch.float32)
            loss = cross_entropy(logits.to(wide), ids[:, 1:].flatten())
            (loss * (len(batch) / total)).backward()
    finally:
        for handle in handles:
            handle.remove()
        for linear in gradients:
            linear.weight.requires_grad_(False)
    return gradients


def batches_of(blocks: Blocks, batch_tokens: int) -> list[Tensor]:
    """All sequences, domain by domain, at most `batch_tokens` at a time."""
    return [
        batch
        for tokens in blocks.values()
        for batch in tokens.split(max(1, batch_tokens // tokens.shape[1]))
    ]


def unit_sums(layer: Layer, kind: Kind, values: Callable[[Any], Tensor]) -> Tensor:
    """Sum over all weights of each unit, ``[units]`` float64 on the CPU.

    Args:
        layer: the block.
        kind: kind of units.
        values: returns a number per weight of a linear layer, in the weight's own layout.
    """
    total = torch.zeros(units_of(layer, kind), dtype=torch.double)
    for member in layer.members(kind):
        linear = member.linear
        numbers = values(linear).double()
        rows = numbers if matrix(linear) is linear.weight else numbers.T  # [out, in]
        owned = member.units >= 0
        of_channel = rows.sum(1 if member.axis == "out" else 0).cpu()
        total.index_add_(0, member.units[owned], of_channel[owned])
    return total


def consumer_of(layer: Layer, kind: Kind) -> Any:
    """The linear layer whose inputs are the units of a kind."""
    return layer.mlp_consumer if kind == "neurons" else layer.attention_consumer


def units_of(layer: Layer, kind: Kind) -> int:
    """Number of units of a kind in a layer."""
    return layer.neurons if kind == "neurons" else layer.kv_groups


def columns_of(units: Tensor, columns: int) -> Tensor:
    """Channels of these units in order; each unit has `columns` consecutive channels."""
    return (units[:, None] * columns + torch.arange(columns, device=units.device)).flatten()


def add_bias(linear: Any, bias: Tensor) -> None:
    """Add to the bias of a linear layer, which is created if there is none."""
    old = 0 if linear.bias is None else linear.bias.double()
    new = (bias + old).to(linear.weight.dtype)
    linear.bias = torch.nn.Parameter(new, requires_grad=False)
