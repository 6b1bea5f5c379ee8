"""What a unit weighs and is made of, what counts as block weights, and which widths are allowed."""

import pytest
import torch

from pruneflow.errors import InputError
from pruneflow.models.families import allowed_attention, family_of
from pruneflow.models.structure import block_weights, layers_of, matrix, parameters, sizes_of
from pruneflow.models.surgery import cut_heads, cut_neurons
from tests.conftest import FAMILIES, SHAPES, all_heads


@pytest.mark.parametrize("shape", SHAPES)
def test_a_unit_weighs_what_its_removal_removes(tiny_model, shape):
    family, changes = SHAPES[shape]
    model = tiny_model(family, **changes)
    layer = layers_of(model)[1]

    def counted(cut):
        before = block_weights(model), parameters(model)
        cut()
        return before[0] - block_weights(model), before[1] - parameters(model)

    def sizes(kind, units=1):
        return units * layer.unit_weights(kind), units * layer.unit_weights(kind, with_biases=True)

    assert sizes("neurons") == counted(lambda: cut_neurons(layer, torch.arange(1, 40)))
    groups, heads = layer.kv_groups, layer.heads_per_group
    if groups > 1:
        assert sizes("kv_groups") == counted(lambda: cut_heads(layer, all_heads(layer)[1:]))
        groups -= 1
    if heads > 1:
        assert sizes("heads", groups) == counted(lambda: cut_heads(layer, all_heads(layer)[:, 1:]))
        heads -= 1
    assert (layer.neurons, layer.kv_groups, layer.heads_per_group) == (39, groups, heads)


def test_weights_of_units_by_hand(tiny_model):
    gated, plain = (layers_of(tiny_model(family))[0] for family in ("llama", "opt"))
    assert gated.unit_weights("neurons") == 3 * 24
    assert gated.unit_weights("heads") == 2 * 4 * 24
    assert gated.unit_weights("kv_groups") == (2 * 2 + 2) * 4 * 24  # (2 r + 2) head_dim d
    assert plain.unit_weights("neurons") == 2 * 24
    assert plain.unit_weights("kv_groups") == 4 * 4 * 24
    for kind, biases in (("neurons", 1), ("kv_groups", 3 * 4)):
        assert gated.unit_weights(kind, with_biases=True) == gated.unit_weights(kind)
        assert plain.unit_weights(kind, with_biases=True) == plain.unit_weights(kind) + biases


@pytest.mark.parametrize("family", FAMILIES)
def test_every_channel_of_the_coupled_linears_belongs_to_a_unit(tiny_model, family):
    layer = layers_of(tiny_model(family))[0]
    for kind, units in (("neurons", layer.neurons), ("kv_groups", layer.kv_groups)):
        for member in layer.members(kind):
            out, inputs = matrix(member.linear).shape
            assert len(member.units) == (out if member.axis == "out" else inputs)
            assert member.units.unique().tolist() == list(range(units))
    producers = {id(m.linear): m.units for m in layer.members("kv_groups") if m.axis == "out"}
    query, *_rest, consumer = layer.members("heads")
    # A head's query rows lie inside its group's rows; keys and values are no head's own.
    owned = query.units >= 0
    assert owned.sum() == len(consumer.units) == layer.heads * layer.head_dim
    assert torch.equal(
        query.units[owned] // layer.heads_per_group, producers[id(query.linear)][owned]
    )


def test_embeddings_and_norms_are_not_block_weights(tiny_model):
    model = tiny_model()
    attention = 24 * 24 * 2 + 24 * 12 * 2
    assert block_weights(model) == 3 * (attention + 3 * 24 * 40)
    assert sizes_of(model).widths.model_dump() == {
        "neurons": [40] * 3,
        "kv_groups": [3] * 3,
        "heads": [6] * 3,
    }


def test_an_unsupported_family_is_refused_and_the_supported_are_named():
    with pytest.raises(InputError, match=r"mamba are not supported.*gpt2.*llama.*opt.*qwen3"):
        family_of("mamba")


def test_head_counts_that_no_configuration_takes_are_left_out(tiny_model):
    # Half the heads of every group or half the groups divide 32; 6 heads do not.
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
    every = {(groups, heads) for groups in (1, 2, 3, 4) for heads in (1, 2)}
    for free in ("mistral", "qwen2", "qwen3", "phi3"):
        assert allowed_attention(tiny_model(free, **sizes).config) == every
    dividing = every - {(3, 1), (3, 2)}
    for strict in ("gemma2", "gemma3_text"):
        assert allowed_attention(tiny_model(strict, **sizes).config) == dividing
    # Llama refuses too, but its twin does not, unless it has biases.
    assert allowed_attention(tiny_model("llama", **sizes).config) == every
    biased = tiny_model("llama", attention_bias=True, **sizes).config
    assert allowed_attention(biased) == dividing


@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neox"])
def test_attention_stays_whole_where_the_head_size_follows_from_the_count(tiny_model, family):
    assert allowed_attention(tiny_model(family).config) == {(6, 1)}
