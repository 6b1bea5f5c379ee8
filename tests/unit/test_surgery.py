"""Removing units is the same as masking them, in every family."""

import pytest
import torch

from pruneflow.models.structure import layers_of, matrix
from pruneflow.models.surgery import cut_heads, cut_neurons, head_columns, set_columns
from tests.conftest import FAMILIES, SHAPES, all_heads


def some(count, least, generator):
    """A random part of `count` units, at least `least` of them, rising."""
    size = int(torch.randint(least, count + 1, (1,), generator=generator))
    return torch.randperm(count, generator=generator)[:size].sort().values


def some_heads(layer, generator):
    """Random KV groups, and as many random query heads of each."""
    groups = some(layer.kv_groups, 1, generator)
    heads = int(torch.randint(1, layer.heads_per_group + 1, (1,), generator=generator))
    rows = [
        row[torch.randperm(len(row), generator=generator)[:heads].sort().values]
        for row in all_heads(layer)[groups]
    ]
    return torch.stack(rows)


def mask(layer, consumer, columns):
    """Silence all input channels of a consumer but those kept."""
    values = torch.zeros(matrix(consumer).shape[1], dtype=torch.double)
    values[columns] = 1
    consumer.register_forward_pre_hook(lambda _module, args: (args[0] * values,))


def logits(model, tokens, cached):
    if not cached:
        return model(input_ids=tokens).logits
    start = model(input_ids=tokens[:, :10], use_cache=True)
    rest = model(input_ids=tokens[:, 10:], past_key_values=start.past_key_values)
    return torch.cat([start.logits, rest.logits], 1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES)
def test_masking_any_units_equals_removing_them(tiny_model, tiny_tokens, shape, seed):
    family, changes = SHAPES[shape]
    masked, cut = tiny_model(family, **changes), tiny_model(family, **changes)
    tokens = tiny_tokens["prose"]
    generator = torch.Generator().manual_seed(seed)
    whole = logits(cut, tokens, False)
    for layer, other in zip(layers_of(masked), layers_of(cut), strict=True):
        neurons, heads = some(layer.neurons, 1, generator), some_heads(layer, generator)
        mask(layer, layer.mlp_consumer, neurons)
        mask(layer, layer.attention_consumer, head_columns(heads, layer.head_dim))
        cut_neurons(other, neurons)
        cut_heads(other, heads)
        assert (other.neurons, other.kv_groups) == (len(neurons), len(heads))
        assert other.heads_per_group == heads.shape[1]
    for cached in (False, True):
        expected = logits(masked, tokens, cached)
        assert torch.allclose(logits(cut, tokens, cached), expected, rtol=0, atol=1e-9)
    assert not torch.allclose(whole, expected, atol=1e-3)  # it does make a difference


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_twice_equals_cutting_once(tiny_model, family):
    once, twice = tiny_model(family), tiny_model(family)
    for layer in layers_of(once):
        cut_neurons(layer, torch.tensor([3, 11, 30]))
        cut_heads(layer, all_heads(layer)[1:2, :1])
    for layer in layers_of(twice):
        cut_neurons(layer, torch.tensor([3, 5, 11, 30, 31]))
        cut_heads(layer, all_heads(layer)[1:])
        cut_neurons(layer, torch.tensor([0, 2, 3]))
        cut_heads(layer, all_heads(layer)[:1, :1])
    one, two = once.state_dict(), twice.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("heads", [[[0, 2]], [[1, 0]], [[2, 3], [0, 1]]])
def test_heads_that_are_no_rows_of_groups_are_refused(tiny_model, heads):
    with pytest.raises(ValueError, match="heads must be ascending"):
        cut_heads(layers_of(tiny_model())[0], torch.tensor(heads))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_refitted_matrix_is_written_the_right_way_round(tiny_model, family):
    consumer = layers_of(tiny_model(family))[0].mlp_consumer
    weight = torch.randn(24, 40, dtype=torch.double)
    set_columns(consumer, weight)
    x = torch.randn(1, 2, 40, dtype=torch.double)
    bias = 0 if consumer.bias is None else consumer.bias
    assert torch.allclose(consumer(x), x @ weight.T + bias)
