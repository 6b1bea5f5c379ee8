"""A whole round: smaller, refitted on the pruned stream, the same every time."""

import pytest
import torch

from pruneflow.config import PruningSettings
from pruneflow.errors import InputError
from pruneflow.models.structure import block_weights, layers_of
from pruneflow.pruning.rounds import DenseShape, prune_round
from pruneflow.pruning.scores import SCORES
from pruneflow.pruning.statistics import sequence_losses
from pruneflow.pruning.stream import BlockStream

# A toy's neurons are few and its KV groups coarse.
TOY = {"neuron_multiple": 4, "min_neuron_share": 0.1}


def _prune(model, tokens, ratio=0.3, dense=None, **settings):
    dense = dense or DenseShape(block_weights(model), layers_of(model)[0].neurons)
    return prune_round(
        model, tokens, ratio, dense, PruningSettings(**TOY, **settings), batch_tokens=48
    )


@pytest.mark.parametrize("score", sorted(SCORES))
@pytest.mark.parametrize("refit", ["least_squares", "none"])
def test_a_round_reaches_its_ratio_and_the_model_still_runs(tiny_model, tiny_tokens, score, refit):
    result = _prune(tiny_model(), tiny_tokens, score=score, refit=refit)
    assert 0.3 <= result.achieved_ratio < 0.3 + 3 * 4 * 72 / 15_552
    assert torch.isfinite(result.model(input_ids=tiny_tokens["code"]).logits).all()


def test_the_same_round_twice_gives_the_same_bytes(tiny_model, tiny_tokens):
    one, two = (_prune(tiny_model(), tiny_tokens).model.state_dict() for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_rounds_continue_from_one_another_towards_a_cumulative_ratio(tiny_model, tiny_tokens):
    model = tiny_model()
    dense = DenseShape(block_weights(model), 40)
    first = _prune(model, tiny_tokens, 0.2, dense)
    second = _prune(first.model, tiny_tokens, 0.4, dense)
    assert 0.2 <= first.achieved_ratio < 0.4 <= second.achieved_ratio < 0.46
    assert second.achieved_ratio == 1 - block_weights(second.model) / dense.block_weights


def test_the_refit_sees_the_stream_of_the_pruned_layers_before_it(tiny_model, tiny_tokens):
    """Each consumer is the optimum for the inputs that it really gets in the pruned model."""
    dense = tiny_model()
    kept = _prune(tiny_model(), tiny_tokens, ridge=1e-10, prune_attention=False)
    tokens = torch.cat(list(tiny_tokens.values()))
    inputs: dict[str, torch.Tensor] = {}

    def catch(name):
        return lambda _module, args: inputs.__setitem__(name, args[0].flatten(0, -2))

    layer = layers_of(kept.model)[1]
    # The dense MLP of layer 1, fed with what reaches layer 1 of the pruned model.
    layer.module.get_submodule("mlp").register_forward_pre_hook(catch("mlp"))
    layer.mlp_consumer.register_forward_pre_hook(catch("pruned"))
    kept.model(input_ids=tokens)
    mlp = layers_of(dense)[1].module.get_submodule("mlp")
    best = torch.linalg.lstsq(inputs["pruned"], mlp(inputs["mlp"])).solution.T
    assert torch.allclose(layer.mlp_consumer.weight, best, rtol=1e-4, atol=1e-6)


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


def test_streaming_block_by_block_is_the_plain_forward_pass(tiny_model, tiny_tokens):
    model = tiny_model()
    layers = layers_of(model)
    tokens = tiny_tokens["prose"]
    expected: list[torch.Tensor] = []
    consumer = layers[2].mlp_consumer
    handle = consumer.register_forward_pre_hook(
        lambda _module, args: expected.append(args[0].flatten(0, -2))
    )
    model(input_ids=tokens)
    handle.remove()
    stream = BlockStream(model, layers, tokens, batch_tokens=64)  # batches of 4 and 2
    stream.advance(layers[0])
    stream.advance(layers[1])
    gram = stream.gram(layers[2], consumer)
    assert torch.allclose(gram, expected[0].T @ expected[0], rtol=1e-9)


def test_attention_stays_whole_when_told_to(tiny_model, tiny_tokens):
    result = _prune(tiny_model(), tiny_tokens, 0.5, prune_attention=False)
    assert {layer.kv_groups for layer in layers_of(result.model)} == {3}


def test_a_target_that_the_floors_forbid_is_refused(tiny_model, tiny_tokens):
    with pytest.raises(InputError, match="floors"):
        _prune(tiny_model(), tiny_tokens, 0.9, prune_attention=False)
