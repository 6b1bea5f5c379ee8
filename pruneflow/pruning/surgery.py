"""Remove units for real: smaller dense tensors, nothing masked."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pruneflow.models.structure import Layer


def cut_neurons(layer: "Layer", keep: "torch.Tensor") -> None:
    """Keep these MLP neurons of a layer, in place: rows of the producers, consumer's columns.

    Args:
        layer: the block to cut.
        keep: indices of the neurons that stay, rising, ``[kept]``.
    """
    for name in layer.family.mlp_producers:
        _keep_rows(layer.linear(name), keep)
    _keep_columns(layer.mlp_consumer, keep)


def cut_kv_groups(layer: "Layer", keep: "torch.Tensor") -> None:
    """Keep these KV groups of a layer with their query heads, in place.

    Args:
        layer: the block to cut.
        keep: indices of the groups that stay, rising, ``[kept]``.
    """
    family = layer.family
    for name in (family.key, family.value):
        _keep_rows(layer.linear(name), group_columns(keep, layer.head_dim))
    columns = group_columns(keep, layer.group_columns)
    _keep_rows(layer.linear(family.query), columns)
    _keep_columns(layer.attention_consumer, columns)


def group_columns(groups: "torch.Tensor", width: int) -> "torch.Tensor":
    """Channel indices of KV groups that are `width` channels wide each, ``[groups * width]``."""
    import torch

    return (groups[:, None] * width + torch.arange(width)).flatten()


def _keep_rows(linear: Any, keep: "torch.Tensor") -> None:
    keep = keep.to(linear.weight.device)
    linear.weight = _frozen(linear.weight[keep])
    if linear.bias is not None:
        linear.bias = _frozen(linear.bias[keep])
    linear.out_features = len(keep)


def _keep_columns(linear: Any, keep: "torch.Tensor") -> None:
    linear.weight = _frozen(linear.weight[:, keep.to(linear.weight.device)])
    linear.in_features = len(keep)


def _frozen(tensor: "torch.Tensor") -> Any:
    from torch.nn import Parameter

    return Parameter(tensor.contiguous().clone(), requires_grad=False)
