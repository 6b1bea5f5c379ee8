"""Running block by block is the plain forward pass, in every family."""

import pytest
import torch

from pruneflow.models.structure import layers_of
from pruneflow.models.surgery import cut_heads, cut_neurons
from pruneflow.pruning.block_stream import BlockStream, split
from tests.conftest import FAMILIES, consumer_inputs


@pytest.mark.parametrize("keep_on_device", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_streaming_block_by_block_is_the_plain_forward_pass(
    tiny_model, tiny_tokens, family, keep_on_device
):
    model, tokens = tiny_model(family), tiny_tokens["prose"]
    layers = layers_of(model)
    stream = BlockStream(model, layers, split(tokens, 64), keep_on_device)  # batches of 4 and 2
    for layer in layers:
        if layer.index == 1:  # what is cut as it goes is seen by the blocks behind it
            cut_neurons(layer, torch.arange(0, 40, 3))
            cut_heads(layer, torch.tensor([[layer.heads_per_group]]))
        for consumer in (layer.attention_consumer, layer.mlp_consumer):
            states, rows = (
                consumer_inputs(model, tokens, module) for module in (layer.module, consumer)
            )
            assert torch.allclose(torch.cat(list(stream)).flatten(0, 1), states, rtol=0, atol=1e-12)
            inputs = torch.cat(list(stream.inputs(layer, consumer))).flatten(0, 1)
            assert torch.allclose(inputs, rows, rtol=0, atol=1e-12)
            assert torch.allclose(stream.gram(layer, consumer), rows.T @ rows, rtol=1e-9)
        stream.advance(layer)
