"""Physical removal of units: smaller dense tensors, without masks."""

import copy
from typing import Any, Literal

import torch
from torch.nn import Parameter

from pruneflow.models.structure import Layer, matrix


def cut_neurons(layer: Layer, keep: torch.Tensor) -> None:
    """Remove all MLP neurons of a layer but `keep`, in place: ascending indices ``[kept]``."""
    for member in layer.members("neurons"):
        _keep(member.linear, member.axis, torch.isin(member.units, keep.cpu()).nonzero().flatten())


def cut_heads(layer: Layer, heads: torch.Tensor) -> None:
    """Remove all other query heads of a layer, and all unused key and value heads, in place.

    The module then runs without further changes, with and without KV cache.

    Args:
        layer: the block to prune.
        heads: indices of the query heads to keep, ``[KV groups kept, heads per group]``, ascending,
            each row from one of the current groups.

    Raises:
        ValueError: a row mixes groups, or the indices are not ascending.
    """
    heads = heads.cpu()
    groups = heads[:, 0] // layer.heads_per_group
    flat = heads.flatten()
    mixed = (heads // layer.heads_per_group != groups[:, None]).any()
    if bool(mixed) or bool((flat.diff() <= 0).any()):
        raise ValueError(f"heads must be ascending, each row from one group: {heads.tolist()}")
    rows: dict[str, list[torch.Tensor]] = {}
    for part, kept in ((0, flat), (1, groups), (2, groups)):
        name, channels = layer.projection(part)
        rows.setdefault(name, []).append(channels[kept].flatten())
    columns = head_columns(heads, layer.head_dim)
    for name, channels_kept in rows.items():
        _keep(layer.linear(name), "out", torch.cat(channels_kept).sort().values)
    _keep(layer.attention_consumer, "in", columns)
    attention, family = layer.attention, layer.family
    for name, value in head_attributes(layer).items():
        setattr(attention, name, value)
    if family.reads_config:
        # Other layers may have other counts, so this module needs its own configuration.
        attention.config = copy.copy(attention.config)
        setattr(attention.config, family.heads_field, layer.heads)
        setattr(attention.config, str(family.groups_field), layer.kv_groups)


def head_columns(heads: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Columns of the consumer for query heads of any shape, ``[heads * head_dim]`` in order."""
    channels = torch.arange(head_dim, device=heads.device)
    return (heads.reshape(-1, 1) * head_dim + channels).flatten()


def set_columns(consumer: Any, weight: torch.Tensor) -> None:
    """Overwrite a consumer's matrix ``[out, in]``, whichever way it is stored."""
    matrix(consumer).data.copy_(weight)


def head_attributes(layer: Layer) -> dict[str, int]:
    """Head counts of a layer, by the attribute names that its attention module has."""
    values = {
        "num_heads": layer.heads,
        "num_key_value_heads": layer.kv_groups,
        "num_key_value_groups": layer.heads_per_group,
        "split_size": layer.heads * layer.head_dim,
    }
    return {name: value for name, value in values.items() if hasattr(layer.attention, name)}


def _keep(linear: Any, axis: Literal["out", "in"], channels: torch.Tensor) -> None:
    """Keep these output or input channels of an ``nn.Linear`` or ``Conv1D``, in place."""
    weight = matrix(linear)
    channels = channels.to(weight.device)
    transposed = weight is not linear.weight
    kept = weight[channels] if axis == "out" else weight[:, channels]
    linear.weight = _frozen(kept.T if transposed else kept)
    if axis == "out" and linear.bias is not None:
        linear.bias = _frozen(linear.bias[channels])
    sizes = {"out": ("nf", "out_features"), "in": ("nx", "in_features")}
    setattr(linear, sizes[axis][not transposed], len(channels))


def _frozen(tensor: torch.Tensor) -> Any:
    return Parameter(tensor.detach().clone().contiguous(), requires_grad=False)
