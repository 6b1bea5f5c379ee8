"""Pruned variants of a dense model for timing, and the minimum work of each part."""

import copy
from typing import Any, NamedTuple

import torch

from pruneflow.models.structure import block_weights, layers_of, matrix, sizes_of
from pruneflow.models.surgery import cut_heads, cut_neurons

RATIOS = (0.2, 0.5)
MULTIPLE = 64  # of neurons, in an aligned layer
DENSE = "dense"
MLP, ACTIVATION, ATTENTION = "mlp linears", "mlp activation", "attention linears"
SCORES, HEAD, OTHER = "attention rest", "head, embedding", "other"
Models = dict[str, Any]


class Work(NamedTuple):
    """Operations and bytes: of a computation, or per second of a device."""

    flops: float
    bytes: float

    def least_seconds(self, speed: "Work") -> float:
        """Minimum duration on a device."""
        return max(self.flops / speed.flops, self.bytes / speed.bytes)


def pruned(dense: Any, ratio: float, heads: bool = False, extra: int = 0) -> Any | None:
    """A copy without this share of the block weights, as close as multiples of neurons allow.

    With `heads` the same share of KV groups is removed; None if that would be none or all of them.
    Every layer keeps `extra` neurons above a multiple. Unpruned weights are shared.
    """
    model = copy.deepcopy(dense, {id(parameter): parameter for parameter in dense.parameters()})
    layers = layers_of(model)
    for layer in layers if heads else []:
        groups = round((1 - ratio) * layer.kv_groups)
        if not 0 < groups < layer.kv_groups:
            return None
        cut_heads(layer, torch.arange(groups * layer.heads_per_group).view(groups, -1))
    excess = block_weights(model) - (1 - ratio) * block_weights(dense)
    kept = 1 - excess / sum(layer.neurons * layer.unit_weights("neurons") for layer in layers)
    for layer in layers:
        multiples = max(1, round(kept * layer.neurons / MULTIPLE))
        cut_neurons(layer, torch.arange(multiples * MULTIPLE + extra))
    return model


def variants(dense: Any) -> Models:
    """The dense model and its pruned variants, by name."""
    models = {DENSE: dense}
    for ratio in RATIOS:
        models[f"aligned {ratio:.0%}"] = pruned(dense, ratio)
        models[f"unaligned {ratio:.0%}"] = pruned(dense, ratio, extra=1)
        models[f"heads {ratio:.0%}"] = pruned(dense, ratio, heads=True)
    return {name: model for name, model in models.items() if model is not None}


def facts(model: Any, dense: Any) -> dict[str, Any]:
    """Sizes of a variant for the results."""
    kept = block_weights(model) / block_weights(dense)
    stored = sum(parameter.nbytes for parameter in model.parameters())
    gain = {"ratio": 1 - kept, "ideal_by_block_weights": 1 / kept}
    return {**sizes_of(model).to_json(), **gain, "bytes": stored}


def modules_of(model: Any) -> dict[str, list[Any]]:
    """The modules of each part; those of `ACTIVATION` and `SCORES` contain the linears."""
    layers = layers_of(model)
    family = layers[0].family
    mlp = family.mlp_consumer.rpartition(".")[0]  # OPT's linears are in the block itself
    in_mlp = (*family.mlp_producers, family.mlp_consumer)
    in_attention = (*family.attention_producers, family.attention_consumer)
    return {
        MLP: [layer.linear(name) for layer in layers for name in in_mlp],
        ACTIVATION: [layer.linear(mlp) for layer in layers if mlp],
        ATTENTION: [layer.linear(name) for layer in layers for name in in_attention],
        SCORES: [layer.attention for layer in layers],
        HEAD: [model.get_input_embeddings(), model.get_output_embeddings()],
    }


def work_of(model: Any, phase: str, prompt: Any, new_tokens: int) -> dict[str, Work]:
    """Minimum work of each part of a model in a phase, by the formulas of `benchmarks.speed`."""
    batch, length = prompt.shape
    if phase == "prefill":
        passes, tokens, cached = 1, length, length
        pairs = length * (length + 1) // 2
    else:
        passes = tokens = new_tokens
        cached = pairs = new_tokens * length + new_tokens * (new_tokens + 1) // 2
    layers, modules, size = layers_of(model), modules_of(model), model.dtype.itemsize

    def products(linears: list[Any], times: int) -> Work:
        weights = sum(matrix(linear).numel() for linear in linears)
        return Work(2 * weights * batch * times, weights * size * passes)

    table, head = modules[HEAD]
    logits, rows = products([head], passes), table.weight.shape[1] * batch * tokens
    query = sum(layer.heads * layer.head_dim for layer in layers)
    key = sum(layer.kv_groups * layer.head_dim for layer in layers)
    vectors = sum(values.numel() for values in model.parameters() if values.dim() == 1)
    return {
        MLP: products(modules[MLP], tokens),
        ACTIVATION: Work(sum(layer.neurons for layer in layers) * batch * tokens, 0),
        ATTENTION: products(modules[ATTENTION], tokens),
        SCORES: Work(4 * query * batch * pairs, 2 * key * batch * cached * size),
        HEAD: Work(logits.flops, logits.bytes + rows * size),
        OTHER: Work(0, vectors * size * passes),
    }
