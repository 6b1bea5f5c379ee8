"""What a unit weighs, and what is counted as block weights."""

import pytest
import torch
from transformers import GPT2Config

from pruneflow.errors import InputError
from pruneflow.models.export import rebuild
from pruneflow.models.structure import allowed_kv_groups, block_weights, family_of, layers_of
from pruneflow.pruning.surgery import cut_kv_groups, cut_neurons
from tests.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unit_weighs_what_its_removal_removes(tiny_model, family):
    model = tiny_model(family)
    before = block_weights(model)
    layer = layers_of(model)[0]
    neuron, group = layer.neuron_weights, layer.group_weights
    cut_neurons(layer, torch.arange(1, 40))
    assert before - block_weights(model) == neuron == 3 * 24
    cut_kv_groups(layer, torch.arange(1, 3))
    assert before - block_weights(model) == neuron + group
    assert group == (2 * 2 + 2) * 4 * 24  # (2 r + 2) head_dim d


def test_embeddings_and_norms_are_not_block_weights(tiny_model):
    model = tiny_model()
    attention = 24 * 24 * 2 + 24 * 12 * 2
    assert block_weights(model) == 3 * (attention + 3 * 24 * 40)


def test_an_unsupported_family_is_refused_and_the_supported_are_named():
    with pytest.raises(InputError, match=r"gpt2 are not supported.*llama.*mistral.*qwen2.*qwen3"):
        family_of(GPT2Config())


def test_group_counts_that_the_configuration_refuses_are_left_out(tiny_model):
    # 32 wide with 8 heads in 4 groups: Llama refuses 6 heads, Qwen2 takes any number.
    sizes = {
        "hidden_size": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    assert allowed_kv_groups(tiny_model("llama", **sizes).config) == [1, 2, 4]
    assert allowed_kv_groups(tiny_model("qwen2", **sizes).config) == [1, 2, 3, 4]


def test_the_llama_3_shape_is_pruned_and_rebuilt(tiny_model, tiny_tokens):
    model = tiny_model(hidden_size=32, num_attention_heads=8, num_key_value_heads=2, head_dim=4)
    for layer in layers_of(model):
        cut_kv_groups(layer, torch.tensor([1]))
    pruned = rebuild(model)
    assert pruned.config.num_attention_heads == 4
    assert torch.isfinite(pruned(input_ids=tiny_tokens["code"]).logits).all()
