"""What the peers share: how much leaves each layer, what is measured on the way, the cut itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pruneflow.errors import InputError
from pruneflow.models.structure import Layer, block_weights, layers_of, matrix
from pruneflow.models.surgery import cut_heads, cut_neurons, set_columns
from pruneflow.progress import track
from pruneflow.pruning.block_stream import BlockStream, split

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

Kind = Literal["neurons", "kv_groups"]
KINDS: tuple[Kind, ...] = ("kv_groups", "neurons")
NEURON_FLOOR = 0.1


@dataclass(frozen=True)
class Choice:
    """What a method wants of one layer.

    Attributes:
        keep: units that stay, rising.
        weight: the consumer's new matrix on their columns, ``[d_out, kept]``; None leaves it.
    """

    keep: "Tensor"
    weight: "Tensor | None" = None


def uniform_counts(
    layers: list[Layer], weights: int, ratio: float, attention: bool
) -> tuple[int, int]:
    """Neurons and KV groups that leave every layer, so that at least `ratio` is gone.

    With `attention`, KV groups go in the same share as weights do, rounded; neurons do the rest.
    """
    first = layers[0]
    groups = min(round(ratio * first.kv_groups), first.kv_groups - 1) if attention else 0
    rest = ratio * weights / len(layers) - groups * first.group_weights
    neurons = max(0, math.ceil(rest / first.neuron_weights - 1e-9))
    most = first.neurons - math.ceil(NEURON_FLOOR * first.neurons)
    if neurons > most:
        raise InputError(
            f"ratio {ratio:g} would take {neurons} of {first.neurons} neurons of every layer, "
            f"at most {most} may go: lower it, or prune attention too"
        )
    return neurons, groups


def cut_uniformly(
    model: "PreTrainedModel",
    ratio: float,
    attention: bool,
    score: Callable[[Layer, Kind], "Tensor"],
) -> float:
    """Same widths everywhere, the units with the highest score stay; returns the ratio."""
    layers = layers_of(model)
    before = block_weights(model)
    neurons, groups = uniform_counts(layers, before, ratio, attention)
    for layer in layers:
        for kind, gone in zip(KINDS, (groups, neurons), strict=True):
            if gone:
                cut_units(layer, kind, best(score(layer, kind), units_of(layer, kind) - gone))
    return 1 - block_weights(model) / before


def cut_layer_by_layer(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    attention: bool,
    batch_tokens: int,
    choose: Callable[["Tensor", "Tensor", int, int], Choice],
    label: str,
) -> float:
    """Same widths everywhere, each layer on the activations of the pruned layers before it.

    `choose` gets the consumer's matrix ``[d_out, m]``, its ``H = X^T X`` ``[m, m]``, how many
    columns a unit has and how many units stay. Attention is cut before the MLP sees it.
    """
    import torch

    layers = layers_of(model)
    before = block_weights(model)
    neurons, groups = uniform_counts(layers, before, ratio, attention)
    stream = BlockStream(model, layers, split(torch.cat(list(blocks.values())), batch_tokens))
    for layer in track(layers, label):
        for kind, gone in zip(KINDS, (groups, neurons), strict=True):
            if not gone:
                continue
            units, consumer = units_of(layer, kind), consumer_of(layer, kind)
            gram = stream.gram(layer, consumer)
            choice = choose(matrix(consumer), gram, len(gram) // units, units - gone)
            cut_units(layer, kind, choice.keep)
            if choice.weight is not None:
                set_columns(consumer, choice.weight)
        stream.advance(layer)
    return 1 - block_weights(model) / before


def lowest_go(
    layers: list[Layer], scores: dict[Kind, list["Tensor"]], to_remove: int
) -> dict[Kind, list["Tensor"]]:
    """One threshold for all units: the lowest go until enough weights have, floors permitting.

    Args:
        layers: the blocks.
        scores: per kind and layer, ``[units]`` on the CPU.
        to_remove: weights.

    Returns:
        Units that stay, rising, per kind and layer.

    Raises:
        InputError: the floors do not leave enough to remove.
    """
    import torch

    weights = {
        "neurons": [layer.neuron_weights for layer in layers],
        "kv_groups": [layer.group_weights for layer in layers],
    }
    spare = {
        "neurons": [layer.neurons - math.ceil(NEURON_FLOOR * layer.neurons) for layer in layers],
        "kv_groups": [layer.kv_groups - 1 for layer in layers],
    }
    stays = {kind: [torch.ones(len(t), dtype=torch.bool) for t in scores[kind]] for kind in scores}
    ranked = sorted(
        (value, kind, index, unit)
        for kind, tensors in scores.items()
        for index, tensor in enumerate(tensors)
        for unit, value in enumerate(tensor.tolist())
    )
    removed = 0
    for _, kind, index, unit in ranked:
        if removed >= to_remove:
            break
        if spare[kind][index] == 0:
            continue
        spare[kind][index] -= 1
        stays[kind][index][unit] = False
        removed += weights[kind][index]
    if removed < to_remove:
        raise InputError(
            f"{to_remove:,} weights are to go, but the floors leave only {removed:,}: lower the "
            "ratio"
        )
    return {kind: [t.nonzero().flatten() for t in stays[kind]] for kind in stays}


def best(scores: "Tensor", keep: int) -> "Tensor":
    """The `keep` highest, indices rising; the earlier of two equals goes first."""
    return scores.argsort(stable=True)[len(scores) - keep :].sort().values


@dataclass
class Moments:
    """Sums over tokens of the channels of one input, ``[m]`` float64."""

    tokens: int
    total: "Tensor"
    squares: "Tensor"

    @property
    def mean(self) -> "Tensor":
        """Mean of each channel."""
        return self.total / self.tokens

    @property
    def variance(self) -> "Tensor":
        """Variance of each channel, over tokens."""
        return (self.squares / self.tokens - self.mean.square()).clamp_min(0)


def consumer_moments(
    model: "PreTrainedModel",
    layers: list[Layer],
    blocks: dict[str, "Tensor"],
    batch_tokens: int,
) -> dict[tuple[Kind, int], Moments]:
    """Mean and variance over tokens of every consumer's input, in one forward pass, float64."""
    import torch

    found: dict[tuple[Kind, int], Moments] = {}

    def watch(kind: Kind, index: int) -> Callable[[Any, tuple["Tensor", ...]], None]:
        def before(_module: Any, arguments: tuple["Tensor", ...]) -> None:
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
    model: "PreTrainedModel",
    layers: list[Layer],
    blocks: dict[str, "Tensor"],
    batch_tokens: int,
) -> dict["torch.nn.Module", "Tensor"]:
    """Gradient of the mean loss by every block matrix, accumulated in float32 or wider."""
    import torch
    from torch.nn.functional import cross_entropy

    gradients: dict[torch.nn.Module, Tensor] = {}
    total = sum(len(tokens) for tokens in blocks.values())

    def collect(linear: "torch.nn.Module") -> Callable[["Tensor"], None]:
        def after(weight: "Tensor") -> None:
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


def batches_of(blocks: dict[str, "Tensor"], batch_tokens: int) -> list["Tensor"]:
    """All sequences, domain by domain, at most `batch_tokens` at a time."""
    return [
        batch
        for tokens in blocks.values()
        for batch in tokens.split(max(1, batch_tokens // tokens.shape[1]))
    ]


def unit_sums(layer: Layer, kind: Kind, values: Callable[[Any], "Tensor"]) -> "Tensor":
    """Sum over all weights that go with each unit, ``[units]`` float64 on the CPU.

    Args:
        layer: the block.
        kind: which units.
        values: one number for every weight of a linear layer, in the weight's own orientation.
    """
    import torch

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
    """The linear layer that reads units of a kind."""
    return layer.mlp_consumer if kind == "neurons" else layer.attention_consumer


def units_of(layer: Layer, kind: Kind) -> int:
    """How many units of a kind a layer has now."""
    return layer.neurons if kind == "neurons" else layer.kv_groups


def columns_of(units: "Tensor", columns: int) -> "Tensor":
    """Channels of these units, in their order, each unit having `columns` consecutive ones."""
    import torch

    return (units[:, None] * columns + torch.arange(columns, device=units.device)).flatten()


def cut_units(layer: Layer, kind: Kind, keep: "Tensor") -> None:
    """Keep these units of a layer, KV groups with all their query heads, in place."""
    import torch

    if kind == "neurons":
        cut_neurons(layer, keep.cpu())
    else:
        cut_heads(layer, torch.arange(layer.heads).view(layer.kv_groups, -1)[keep.cpu()])


def add_bias(linear: Any, bias: "Tensor") -> None:
    """Give a linear layer a bias, or add to the one it has."""
    import torch

    old = 0 if linear.bias is None else linear.bias.double()
    new = (bias + old).to(linear.weight.dtype)
    linear.bias = torch.nn.Parameter(new, requires_grad=False)
