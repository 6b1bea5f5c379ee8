"""Removing units is the same as masking them, in every family."""

import pytest
import torch

from pruneflow.models.export import rebuild
from pruneflow.models.structure import layers_of
from pruneflow.pruning.surgery import cut_kv_groups, cut_neurons, group_columns
from tests.conftest import FAMILIES

NEURONS = torch.tensor([0, 3, 4, 11, 12, 13, 25, 39])
GROUPS = torch.tensor([0, 2])


def _mask(consumer, keep):
    """Silence all input channels of a consumer but those kept."""
    mask = torch.zeros(consumer.in_features, dtype=torch.double)
    mask[keep] = 1
    consumer.register_forward_pre_hook(lambda _module, args: (args[0] * mask,))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cached", [False, True])
def test_masking_units_equals_removing_them(tiny_model, tiny_tokens, family, cached):
    masked, cut = tiny_model(family), tiny_model(family)
    for layer in layers_of(masked):
        _mask(layer.mlp_consumer, NEURONS)
        _mask(layer.attention_consumer, group_columns(GROUPS, layer.group_columns))
    for layer in layers_of(cut):
        cut_neurons(layer, NEURONS)
        cut_kv_groups(layer, GROUPS)
    pruned = rebuild(cut)
    tokens = tiny_tokens["prose"]
    if cached:
        outputs = []
        for model in (masked, pruned):
            start = model(input_ids=tokens[:, :10], use_cache=True)
            rest = model(input_ids=tokens[:, 10:], past_key_values=start.past_key_values)
            outputs.append(torch.cat([start.logits, rest.logits], 1))
    else:
        outputs = [model(input_ids=tokens).logits for model in (masked, pruned)]
    assert torch.allclose(*outputs, rtol=0, atol=1e-9)
    assert not torch.allclose(outputs[0], tiny_model(family)(input_ids=tokens).logits, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_reloaded_with_identical_logits(
    tiny_model, tiny_tokens, tmp_path, family
):
    from transformers import AutoModelForCausalLM

    model = tiny_model(family)
    for layer in layers_of(model):
        cut_neurons(layer, NEURONS)
        cut_kv_groups(layer, GROUPS)
    pruned = rebuild(model)
    pruned.save_pretrained(tmp_path)
    reloaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.double, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = tiny_tokens["prose"]
    assert torch.equal(pruned(input_ids=tokens).logits, reloaded(input_ids=tokens).logits)
    config = reloaded.config
    assert (config.intermediate_size, config.num_key_value_heads) == (8, 2)
    assert (config.num_attention_heads, config.head_dim) == (4, 4)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied_and_untied_ones_apart(tiny_model, tied):
    model = tiny_model(tie_word_embeddings=tied)
    for layer in layers_of(model):
        cut_neurons(layer, NEURONS)
    pruned = rebuild(model)
    shared = pruned.lm_head.weight.data_ptr() == pruned.get_input_embeddings().weight.data_ptr()
    assert shared is tied


def test_layers_of_different_widths_are_refused_by_the_uniform_export(tiny_model):
    from pruneflow.errors import PruneflowError

    model = tiny_model()
    cut_neurons(layers_of(model)[0], NEURONS)
    with pytest.raises(PruneflowError, match="different widths"):
        rebuild(model)
