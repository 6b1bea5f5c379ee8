"""A whole round: smaller, refitted on the pruned stream, the same every time."""

import logging

import pytest
import torch

from pruneflow.errors import InputError
from pruneflow.models.structure import block_weights, dense_reference, layers_of, matrix, parameters
from pruneflow.pruning.rounds import prune_round
from pruneflow.pruning.scores import SCORES
from pruneflow.settings.pruning import PruningSettings, Target
from tests.conftest import FAMILIES, consumer_inputs, sequence_losses

# A toy's neurons are few and its KV groups coarse.
TOY = {"neuron_multiple": 4, "min_neuron_share": 0.1}
BLOCKS = 13_824  # block weights of the tiny Llama: three layers of 1728, and 72 a neuron


def _prune(model, tokens, ratio=0.3, dense=None, target=None, **settings):
    if settings.get("refit") == "none":
        settings["towards_dense"] = 0
    return prune_round(
        model,
        tokens,
        target or Target(ratio=ratio),
        dense or dense_reference(model),
        PruningSettings(**{**TOY, **settings}),
        batch_tokens=48,
        stored_bytes=2,
    )


@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_round_reaches_its_ratio_and_the_model_still_runs(tiny_model, tiny_tokens, score, layout):
    result = _prune(tiny_model(), tiny_tokens, score=score, layout=layout)
    step = 4 * 72 * (3 if layout == "uniform" else 1)
    assert 0.3 <= result.achieved_ratio < 0.3 + step / BLOCKS
    assert torch.isfinite(result.model(input_ids=tiny_tokens["code"]).logits).all()
    widths = {layer.neurons for layer in layers_of(result.model)}
    assert len(widths) == 1 or layout == "per_layer"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_every_family_is_pruned_and_refitted(tiny_model, tiny_tokens, family, layout):
    model = tiny_model(family)
    before = parameters(model)
    result = _prune(model, tiny_tokens, layout=layout)
    assert 0.3 <= result.achieved_ratio < 0.4
    assert parameters(result.model) < before
    assert torch.isfinite(result.model(input_ids=tiny_tokens["code"]).logits).all()
    whole = family in ("opt", "gpt2", "gpt_neox") and layout == "uniform"
    assert any("Attention is not pruned" in note for note in result.notes) == whole


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_target_may_be_parameters_or_bytes(tiny_model, tiny_tokens, layout):
    whole = parameters(tiny_model("qwen2"))
    finest = 4 * 74 * (3 if layout == "uniform" else 1)  # four neurons with their biases
    goal = round(0.8 * whole)
    for target in (Target(parameters=goal), Target(bytes=2 * goal)):
        result = _prune(tiny_model("qwen2"), tiny_tokens, target=target, layout=layout)
        assert goal - finest < parameters(result.model) <= goal


def test_the_same_round_twice_gives_the_same_bytes(tiny_model, tiny_tokens):
    one, two = (_prune(tiny_model(), tiny_tokens).model.state_dict() for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_rounds_continue_from_one_another_towards_a_cumulative_ratio(tiny_model, tiny_tokens):
    model = tiny_model()
    dense = dense_reference(model)
    first = _prune(model, tiny_tokens, 0.2, dense)
    second = _prune(first.model, tiny_tokens, 0.4, dense)
    assert 0.2 <= first.achieved_ratio < 0.4 <= second.achieved_ratio < 0.46
    assert second.achieved_ratio == 1 - block_weights(second.model) / dense.block_weights


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_each_consumer_is_the_optimum_for_what_it_really_gets(
    tiny_model, tiny_tokens, family, share, monkeypatch
):
    """Of the outputs between the old one on the pruned stream and the unpruned model's."""
    monkeypatch.setattr("pruneflow.pruning.refit.OUTLIER", 1e9)
    dense = tiny_model(family)
    kept = _prune(
        tiny_model(family), tiny_tokens, ridge=1e-10, units=["neurons"], towards_dense=share
    )
    tokens = torch.cat(list(tiny_tokens.values()))
    index = 1
    layer, old = layers_of(kept.model)[index], layers_of(dense)[index]

    def states(model, layers):
        """What enters the block, what attention adds, what the consumer gets and gives."""
        block = layers[index]
        attention, mlp = block.attention_consumer, block.mlp_consumer
        inputs = consumer_inputs(model, tokens, mlp)
        return {
            "state": consumer_inputs(model, tokens, block.module),
            "attention": attention(consumer_inputs(model, tokens, attention)),
            "inputs": inputs,
            "output": mlp(inputs),
        }

    unpruned = states(dense, layers_of(dense))
    pruned = states(kept.model, layers_of(kept.model))
    # The old MLP, fed with what reaches this block of the pruned model.
    mixed = tiny_model(family)
    for place, block in enumerate(layers_of(kept.model)[:index]):
        mixed.get_submodule(block.family.layers)[place] = block.module
    before = states(mixed, layers_of(mixed))
    plain = family != "gemma2"

    def after(found):
        return found["output"] + (found["state"] + found["attention"] if plain else 0)

    gap = after(unpruned) - after(before)
    bias = layer.mlp_consumer.bias
    target = before["output"] + share * gap - (0 if bias is None else bias)
    best = torch.linalg.lstsq(pruned["inputs"], target).solution.T
    assert old.neurons > layer.neurons
    assert torch.allclose(matrix(layer.mlp_consumer), best, rtol=1e-4, atol=1e-6)


def test_the_refit_lowers_the_loss_of_what_was_cut(tiny_model, tiny_tokens):
    """On a model that has learnt something, so that its loss means something."""
    model = tiny_model(vocab_size=8).requires_grad_(True)
    tokens = {"text": torch.arange(96).remainder(8).view(6, 16)}
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimiser.zero_grad()
        sequence_losses(model, tokens["text"]).mean().backward()
        optimiser.step()
    state = model.state_dict()
    losses = {}
    for refit in ("least_squares", "none"):
        copy = tiny_model(vocab_size=8)
        copy.load_state_dict(state)
        pruned = _prune(copy, tokens, 0.5, refit=refit, score="random").model
        losses[refit] = float(sequence_losses(pruned, tokens["text"]).mean())
    assert losses["least_squares"] < losses["none"]


def test_attention_stays_whole_when_told_to(tiny_model, tiny_tokens):
    result = _prune(tiny_model(), tiny_tokens, 0.5, units=["neurons"])
    assert {(layer.kv_groups, layer.heads) for layer in layers_of(result.model)} == {(3, 6)}


def test_protected_layers_keep_all_they_have(tiny_model, tiny_tokens):
    result = _prune(tiny_model(), tiny_tokens, ratio=0.2, layout="per_layer", protect_layers=[0, 2])
    whole = [(layer.neurons, layer.heads) == (40, 6) for layer in layers_of(result.model)]
    assert whole == [True, False, True]


def test_scores_asked_for_beside_the_chosen_one_come_with_the_round(tiny_model, tiny_tokens):
    result = _prune(tiny_model(), tiny_tokens, also_score=["flap", "wanda_sp"])
    assert set(result.scores) == {"mask_fisher", "flap", "wanda_sp"}
    assert result.scores["flap"].units["heads"][2].shape == (2, 6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 0.9, "units": ["neurons"]}, "allow only"),
        ({"layout": "per_layer", "protect_layers": [3]}, "layer 3, and the model's layers"),
        ({"layout": "per_layer", "protect_layers": [0, 1, 2]}, "protected layers allow only 0"),
    ],
)
def test_a_target_that_cannot_be_reached_is_refused(tiny_model, tiny_tokens, settings, words):
    with pytest.raises(InputError, match=words):
        _prune(tiny_model(), tiny_tokens, **settings)


def test_a_singular_layer_is_refitted_with_a_larger_ridge(tiny_model, tiny_tokens, caplog):
    with caplog.at_level(logging.WARNING):
        one = {"only": tiny_tokens["prose"][:1, :3]}  # fewer tokens than channels
        result = _prune(tiny_model(), one, ridge=1e-20)
    assert torch.isfinite(result.model(input_ids=tiny_tokens["code"]).logits).all()
