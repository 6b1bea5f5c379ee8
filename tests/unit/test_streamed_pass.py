"""Block by block, a pass gives what the whole model gives; a round on a streamed model, too."""

import copy

import pytest
import torch

from pruneflow.models.placement import is_streamed, place, resident
from pruneflow.models.structure import layers_of
from pruneflow.pruning import passes
from pruneflow.pruning.recorder import ACTIVATIONS, MASKS, WEIGHT_GRADIENTS
from pruneflow.pruning.rounds import DenseShape, prune_round
from pruneflow.pruning.settings import PruningSettings, Target
from pruneflow.pruning.statistics import collect
from tests.conftest import FAMILIES, SHAPES

ALL = (ACTIVATIONS, MASKS, WEIGHT_GRADIENTS)


def streamed(model):
    return place(copy.deepcopy(model), "cpu", streamed=True)


@pytest.mark.parametrize("shape", [*FAMILIES, "llama-3"])
def test_statistics_of_a_streamed_model_are_those_of_the_whole_one(tiny_model, tiny_tokens, shape):
    family, changes = SHAPES[shape]
    whole = tiny_model(family, **changes).float()
    one, other = (
        collect(model, tiny_tokens, 48, "score", needs=ALL, gradient="sampled", draws=2)
        for model in (whole, streamed(whole))
    )
    assert one.sums.keys() == other.sums.keys()
    for key, values in one.sums.items():
        largest = float(values.abs().max())
        assert torch.allclose(values, other.sums[key], rtol=0, atol=1e-5 * largest), key
    assert torch.allclose(one.loss, other.loss, rtol=1e-6)


@pytest.mark.parametrize("needs", [(ACTIVATIONS,), (MASKS,)])
def test_groups_of_batches_add_up_to_the_same(tiny_model, tiny_tokens, needs, monkeypatch):
    model = streamed(tiny_model())
    together = collect(model, tiny_tokens, 32, "score", needs=needs)
    monkeypatch.setattr(passes, "HOST_SHARE", 0.0)  # no room: every batch is a group of its own
    seen = []
    group_pass = passes._group_pass
    monkeypatch.setattr(
        passes, "_group_pass", lambda *given: seen.append(given[2]) or group_pass(*given)
    )
    alone = collect(model, tiny_tokens, 32, "score", needs=needs)
    assert [len(group) for group in seen] == [1] * 6
    for key, values in together.sums.items():
        assert torch.equal(values, alone.sums[key]), key


def test_a_streamed_pass_leaves_no_hooks_and_no_stand_ins(tiny_model, tiny_tokens):
    model = streamed(tiny_model())
    logits = model(input_ids=tiny_tokens["code"]).logits
    collect(model, tiny_tokens, 48, "score")
    assert torch.equal(model(input_ids=tiny_tokens["code"]).logits, logits)
    for layer in layers_of(model):
        assert "forward" not in vars(layer.module)
        inner = [module for module in layer.module.modules() if module is not layer.module]
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner)


@pytest.mark.parametrize(
    ("score", "layout"),
    [("mask_fisher", "uniform"), ("mask_fisher", "per_layer"), ("obs", "uniform")],
)
def test_a_round_on_a_streamed_model_makes_the_same_model(tiny_model, tiny_tokens, score, layout):
    whole = tiny_model()
    settings = PruningSettings(
        score=score, layout=layout, neuron_multiple=4, min_neuron_share=0.1, towards_dense=0.3
    )
    made = [
        prune_round(model, tiny_tokens, Target(ratio=0.3), DenseShape.of(model), settings)
        for model in (copy.deepcopy(whole), streamed(whole))
    ]
    assert is_streamed(made[1].model) and not is_streamed(made[0].model)
    one, other = (result.model.state_dict() for result in made)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=1e-9, atol=1e-12), name


def test_a_block_that_changes_is_brought_home_changed_and_one_that_does_not_is_left(tiny_model):
    model = streamed(tiny_model())
    block = layers_of(model)[0].module
    weight = block.mlp.down_proj.weight
    before = weight.data_ptr()
    with resident(block):
        pass
    assert weight.data_ptr() == before
    with resident(block, changed=True):
        block.mlp.down_proj.weight = torch.nn.Parameter(weight[:, :4].clone(), requires_grad=False)
    assert layers_of(model)[0].neurons == 4
    with pytest.raises(ZeroDivisionError), resident(block):
        raise ZeroDivisionError
    assert vars(block)["guest"].stays == 0
