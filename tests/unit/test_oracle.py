"""Torch-pruning's graph, traced through the forward pass, couples the same channels as we do."""

from collections import defaultdict

import pytest
import torch
import torch_pruning as tp
from torch import nn
from transformers.pytorch_utils import Conv1D

from pruneflow.models.structure import layers_of, matrix
from tests.conftest import FAMILIES, SHAPES

pytestmark = pytest.mark.filterwarnings("ignore:Unwrapped parameters")

# The trace ends where keys and values are repeated for the query heads of a group, and does not
# undo how GPT-2 and GPT-NeoX part their one projection: heads are compared where it can.
OWN_HEADS = [*(shape for shape in SHAPES if shape.endswith("-mha")), "opt"]


def traced(model):
    """A dependency graph of a tiny model, with plain linears in place of GPT-2's own."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.nx, module.nf)
            linear.weight.data = matrix(module).detach().float().contiguous()
            linear.bias.data = module.bias.detach().float()
            model.set_submodule(name, linear)
    model.float().requires_grad_(True).set_attn_implementation("eager")
    model.config.use_cache = False
    return tp.DependencyGraph().build_dependency(
        model,
        example_inputs={"input_ids": torch.arange(6)[None]},
        output_transform=lambda output: output.logits,
    )


def coupled(graph, linear, channels):
    """Channels of all linears that must go with these outputs: {(linear, axis): channels}."""
    found = defaultdict(set)
    group = graph.get_pruning_group(linear, tp.prune_linear_out_channels, idxs=channels)
    for dependency, indices in group:
        if isinstance(dependency.target.module, nn.Linear):
            axis = "in" if "in_channels" in dependency.handler.__name__ else "out"
            found[dependency.target.module, axis] |= set(indices)
    return found


def described(layer, kind, unit):
    """The same, by the family's description."""
    return {
        (member.linear, member.axis): set((member.units == unit).nonzero().flatten().tolist())
        for member in layer.members(kind)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_what_goes_with_a_neuron(tiny_model, family):
    model = tiny_model(family)
    graph = traced(model)
    layer = layers_of(model)[1]
    producer = layer.linear(layer.family.mlp_producers[0])
    assert coupled(graph, producer, [7]) == described(layer, "neurons", 7)


@pytest.mark.parametrize("shape", OWN_HEADS)
def test_what_goes_with_a_head_and_its_keys_and_values(tiny_model, shape):
    family, changes = SHAPES[shape]
    model = tiny_model(family, **changes)
    graph = traced(model)
    layer = layers_of(model)[1]
    name, rows = layer.projection(2)
    found = coupled(graph, layer.linear(name), rows[1].tolist())
    assert found == described(layer, "kv_groups", 1)
