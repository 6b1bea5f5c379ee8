"""Block by block, a pass gives what the whole model gives; a round on a streamed model, too."""

import copy

import pytest
import torch

from pruneflow.compute.placement import is_streamed, place, resident
from pruneflow.models.structure import dense_reference, layers_of
from pruneflow.pruning import block_passes, statistics
from pruneflow.pruning.rounds import prune_round
from pruneflow.pruning.statistics import collect
from pruneflow.pruning.token_losses import losses_of
from pruneflow.pruning.unit_recorder import ACTIVATIONS, LOSS, MASKS, WEIGHT_GRADIENTS
from pruneflow.settings.pruning import PruningSettings, Target
from tests.conftest import FAMILIES, SHAPES

ALL = (ACTIVATIONS, MASKS, WEIGHT_GRADIENTS)


def streamed(model):
    return place(copy.deepcopy(model), "cpu", streamed=True)


def plain_pass(model, layers, batches, recorder, objective, _label):
    """The whole model forward, and back through one graph."""
    embedded = []

    def start_graph(_module, _arguments, output):
        embedded[:] = [output.requires_grad_(True)]

    hook = model.get_input_embeddings().register_forward_hook(start_graph)
    for batch in batches:
        vector = recorder.blank()
        recorder.watch(len(batch.tokens), vector)
        with recorder.hooked(layers):
            logits = model(input_ids=batch.tokens, use_cache=False).logits
            logits, losses = losses_of(logits, batch.tokens)
            for draw in range(objective.draws):
                value = objective.value(logits, losses, batch.first, draw)
                torch.autograd.grad(value, embedded, retain_graph=True)
        recorder.add(LOSS, losses.detach().double().mean(1).sum())
        yield vector
    hook.remove()


@pytest.mark.parametrize("placed", [copy.deepcopy, streamed])
@pytest.mark.parametrize("shape", [*FAMILIES, "llama-3"])
def test_block_by_block_shows_what_the_plain_pass_does(
    tiny_model, tiny_tokens, shape, placed, monkeypatch
):
    family, changes = SHAPES[shape]
    model = placed(tiny_model(family, **changes).float())
    settings = {"needs": ALL, "gradient": "sampled", "draws": 2}
    by_blocks = collect(model, tiny_tokens, 48, "score", **settings)
    monkeypatch.setattr(statistics, "pass_by_blocks", plain_pass)
    plain = collect(place(model, "cpu"), tiny_tokens, 48, "score", **settings)
    assert plain.sums.keys() == by_blocks.sums.keys()
    for key, values in plain.sums.items():
        largest = float(values.abs().max())
        assert torch.allclose(values, by_blocks.sums[key], rtol=0, atol=1e-5 * largest), key
    assert torch.allclose(plain.loss, by_blocks.loss, rtol=1e-6)


def test_logits_of_one_sequence_are_held_at_a_time(tiny_model, tiny_tokens):
    model = tiny_model()
    rows = []
    handle = model.lm_head.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    collect(model, tiny_tokens, 48, "score")
    handle.remove()
    assert rows == [1] * sum(len(tokens) for tokens in tiny_tokens.values())


@pytest.mark.parametrize("needs", [(ACTIVATIONS,), (MASKS,)])
def test_groups_of_batches_add_up_to_the_same(tiny_model, tiny_tokens, needs, monkeypatch):
    model = streamed(tiny_model())
    together = collect(model, tiny_tokens, 32, "score", needs=needs)
    monkeypatch.setattr(
        block_passes, "HOST_SHARE", 0.0
    )  # no room: every batch is a group of its own
    seen = []
    group_pass = block_passes._group_pass
    monkeypatch.setattr(
        block_passes, "_group_pass", lambda *given: seen.append(given[2]) or group_pass(*given)
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


def test_a_round_with_a_pass_of_its_own_makes_the_same_model_streamed(tiny_model, tiny_tokens):
    whole = tiny_model()
    settings = PruningSettings(
        score="obs", neuron_multiple=4, min_neuron_share=0.1, towards_dense=0.3
    )
    made = [
        prune_round(model, tiny_tokens, Target(ratio=0.3), dense_reference(model), settings)
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
    assert vars(block)["loader"].users == 0
