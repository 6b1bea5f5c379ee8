"""Prunable units of a transformer block, and the weights that belong to each.

A *consumer* is the linear layer whose input channels are pruned; its *producers* compute those
channels. MLP: neuron j is row j of every producer and column j of the consumer. Attention: KV group
g is its rows of the key and value projections, the rows of its query heads, and the columns of
those heads in the output projection. Widths are read from the tensors, never from the
configuration, which no longer matches after pruning in place.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from pruneflow.models.families import Family, LayerWidths, family_of
from pruneflow.models.round_record import DenseReference, Sizes, Widths

Kind = Literal["neurons", "heads", "kv_groups"]


@dataclass(frozen=True)
class Member:
    """The channels of a linear layer that belong to units of one kind.

    Attributes:
        linear: an ``nn.Linear`` or transformers' ``Conv1D``; see `matrix`.
        axis: ``out`` if units are rows (outputs), ``in`` if they are columns (inputs).
        units: index of the unit of each channel, or -1, ``[channels]`` int64.
    """

    linear: Any
    axis: Literal["out", "in"]
    units: torch.Tensor


@dataclass(frozen=True)
class Layer:
    """One transformer block. Its widths are read from its current tensors."""

    index: int
    module: nn.Module
    family: Family
    head_dim: int

    def linear(self, name: str) -> Any:
        """The linear layer `name`, as in `Family`."""
        return self.module.get_submodule(name)

    @property
    def mlp_consumer(self) -> Any:
        """The linear layer whose inputs are the neurons."""
        return self.linear(self.family.mlp_consumer)

    @property
    def attention_consumer(self) -> Any:
        """The linear layer whose inputs are the heads."""
        return self.linear(self.family.attention_consumer)

    @property
    def attention(self) -> Any:
        """The attention module, with the consumer and the head counts."""
        return self.module.get_submodule(self.family.attention_consumer.rpartition(".")[0])

    @property
    def adds_plainly(self) -> bool:
        """Whether a consumer's output is added to the hidden states without normalisation."""
        # OPT-350m is the only OPT model that normalises after the addition.
        return self.family.adds_plainly and getattr(self.module, "do_layer_norm_before", True)

    @property
    def device(self) -> torch.device:
        """Current device of its weights."""
        return matrix(self.mlp_consumer).device

    @property
    def neurons(self) -> int:
        """Number of MLP neurons."""
        return matrix(self.mlp_consumer).shape[1]

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return matrix(self.attention_consumer).shape[1] // self.head_dim

    @property
    def kv_groups(self) -> int:
        """Number of KV groups."""
        names = self.family.attention_producers
        rows = sum(matrix(self.linear(name)).shape[0] for name in names)
        return (rows // self.head_dim - self.heads) // 2

    @property
    def heads_per_group(self) -> int:
        """Number of query heads that share a key and value head."""
        return self.heads // self.kv_groups

    def projection(self, part: int) -> tuple[str, torch.Tensor]:
        """The projection of queries (0), keys (1) or values (2).

        Returns:
            The name of the linear layer, and its rows ``[heads or KV groups, head_dim]``.
        """
        names, heads, groups = self.family.attention_producers, self.heads, self.kv_groups
        count = groups if part else heads
        if self.family.interleaved:
            rows = torch.arange(3 * heads * self.head_dim).view(heads, 3, self.head_dim)
            return names[0], rows[:, part]
        start = (0, heads, heads + groups)[part] if len(names) == 1 else 0
        rows = start * self.head_dim + torch.arange(count * self.head_dim)
        return names[part % len(names)], rows.view(count, self.head_dim)

    def members(self, kind: Kind) -> list[Member]:
        """The channels of the units of a kind: rows of the producers, columns of the consumer.

        A query head has its query rows and its columns; keys and values belong to its group.
        """
        if kind == "neurons":
            members = []
            for name in self.family.mlp_producers:
                linear = self.linear(name)
                rows = torch.arange(matrix(linear).shape[0])
                members.append(Member(linear, "out", rows % self.neurons))
            return [*members, Member(self.mlp_consumer, "in", torch.arange(self.neurons))]
        owner = torch.arange(self.heads)  # the unit that a head belongs to
        parts: tuple[int, ...] = (0,)
        if kind == "kv_groups":
            owner, parts = owner // self.heads_per_group, (0, 1, 2)
        producers: dict[str, torch.Tensor] = {}
        for part in parts:
            name, rows = self.projection(part)
            channels = matrix(self.linear(name)).shape[0]
            units = producers.setdefault(name, torch.full((channels,), -1))
            units[rows] = (torch.arange(len(rows)) if part else owner)[:, None]
        return [
            *(Member(self.linear(name), "out", units) for name, units in producers.items()),
            Member(self.attention_consumer, "in", owner.repeat_interleave(self.head_dim)),
        ]

    def unit_weights(self, kind: Kind, with_biases: bool = False) -> int:
        """Weights of one unit, with or without biases; all units of a kind have the same number.

        With model size d: 3 d of a neuron in a gated MLP, 2 head_dim d of a query head, and
        (2 r + 2) head_dim d of a KV group of r heads.
        """
        total = 0
        for member in self.members(kind):
            channels = int((member.units == 0).sum())
            out, inputs = matrix(member.linear).shape
            total += channels * (inputs if member.axis == "out" else out)
            if with_biases and member.axis == "out" and member.linear.bias is not None:
                total += channels
        return total


def matrix(linear: Any) -> torch.Tensor:
    """A linear layer's weight as a view ``[out, in]``; ``Conv1D`` stores it transposed."""
    weight: torch.Tensor = linear.weight
    return weight if hasattr(linear, "out_features") else weight.T


def layers_of(model: PreTrainedModel) -> list[Layer]:
    """The blocks of a model, first to last."""
    family = family_of(model.config.model_type)
    blocks: Any = model.get_submodule(family.layers)
    owner = family.attention_consumer.rpartition(".")[0]
    layers = []
    for index, module in enumerate(blocks):
        attention = module.get_submodule(owner)
        head_dim = getattr(attention, "head_dim", None) or attention.head_size
        layers.append(Layer(index, module, family, int(head_dim)))
    return layers


def widths_of(layer: Layer) -> LayerWidths:
    """Current widths of a layer."""
    return LayerWidths(layer.neurons, layer.kv_groups, layer.heads)


def block_weights(model: PreTrainedModel) -> int:
    """Weights in the matrices of all blocks, without embeddings, head, norms and biases.

    Every *ratio* in this project is a share of the dense model's block weights.
    """
    return sum(
        parameter.numel()
        for layer in layers_of(model)
        for parameter in layer.module.parameters()
        if parameter.dim() == 2
    )


def record_tying(model: PreTrainedModel) -> None:
    """Set `tie_word_embeddings` to false in the configuration of a model that does not tie them.

    transformers leaves the two untied, and the configuration as it is, where a checkpoint has an
    ``lm_head.weight`` of its own although its configuration ties it to the embeddings: a model
    built from that configuration would lose the head.
    """
    head: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    weight, tied = head.weight, embeddings.weight
    if weight is not tied and not torch.equal(weight.to(tied.device), tied):
        model.config.tie_word_embeddings = False


def parameters(model: PreTrainedModel) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Parameters, block weights, and the widths of every layer."""
    layers = layers_of(model)
    widths = Widths(
        neurons=[layer.neurons for layer in layers],
        kv_groups=[layer.kv_groups for layer in layers],
        heads=[layer.heads for layer in layers],
    )
    return Sizes(parameters=parameters(model), block_weights=block_weights(model), widths=widths)


def dense_reference(model: PreTrainedModel, digest: str | None = None) -> DenseReference:
    """What targets and floors of later rounds refer to, taken from the unpruned model."""
    return DenseReference(
        digest=digest, block_weights=block_weights(model), neurons=layers_of(model)[0].neurons
    )
