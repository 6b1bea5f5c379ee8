"""Drift against a calculation with numpy, and greedy text against a loop without a cache."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneflow import Recipe, prune
from pruneflow.errors import InputError
from pruneflow.measure import drift
from pruneflow.measure.drift import compare_models, greedy_text, repetition
from pruneflow.measure.perplexity import NonFiniteLossError
from tests.conftest import FAMILIES


def perturbed(model, seed=3, size=0.05):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
        parameter.data += size * noise.to(parameter.dtype)
    return other


@pytest.fixture
def pair(tiny_model):
    model = tiny_model()
    return model, perturbed(model)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def by_hand(model, ids):
    """Distributions [n, T - 1, vocabulary] of tokens 2..T, and norms after each layer but the last.

    The last hidden state that transformers gives is normalised, so it cannot be compared.
    """
    output = model(input_ids=ids, output_hidden_states=True)
    norms = [np.linalg.norm(state.numpy(), axis=-1) for state in output.hidden_states[1:-1]]
    return softmax(output.logits.numpy()[:, :-1]), np.array(norms)


@pytest.mark.parametrize(("batch_tokens", "positions"), [(1, 256), (64, 5), (4096, 256)])
def test_every_measure_is_what_a_calculation_by_hand_gives(
    pair, tiny_tokens, monkeypatch, batch_tokens, positions
):
    monkeypatch.setattr(drift, "_POSITIONS", positions)
    losses, found = compare_models(*pair, tiny_tokens, batch_tokens, "test")
    moved = []
    for domain, ids in tiny_tokens.items():
        (p, before), (q, after) = (by_hand(model, ids) for model in pair)
        targets = ids.numpy()[:, 1:, None]
        for model, guess in (("dense", p), ("pruned", q)):
            loss = -np.log(np.take_along_axis(guess, targets, axis=-1))
            assert getattr(losses, model)[domain]["tokens"] == loss.size == 90
            assert getattr(losses, model)[domain]["nll"] == pytest.approx(loss.sum(), rel=1e-5)
            assert getattr(losses, model)[domain]["perplexity"] == pytest.approx(
                np.exp(loss.mean()), rel=1e-5
            )
            entropy = -(guess * np.log(guess)).sum(axis=-1).mean()
            assert getattr(found.entropy, model)[domain] == pytest.approx(entropy, rel=1e-5)
        assert found.kl[domain] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
        agreement = (p.argmax(-1) == q.argmax(-1)).mean()
        assert found.top1_agreement[domain] == pytest.approx(agreement)
        moved.append(np.log(after / before))
    expected = np.concatenate(moved, axis=1).mean(axis=(1, 2))
    assert found.norms[:-1] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert len(found.norms) == 3


def test_one_token_with_a_huge_norm_does_not_decide_the_norm_of_a_layer(tiny_model, tiny_tokens):
    """First tokens' norms are hundreds of times the others'; a root mean square sees them only."""
    model = tiny_model()

    def first_tokens_up(scale):
        def change(_module, _inputs, output):
            factors = output.new_full((output.shape[1], 1), scale)
            factors[0] = 1000.0
            return output * factors

        made = copy.deepcopy(model)
        made.model.layers[2].register_forward_hook(change)
        return made

    _, found = compare_models(first_tokens_up(1.0), first_tokens_up(1.5), tiny_tokens, 256, "test")
    assert found.norms[2] == pytest.approx(math.log(1.5) * 15 / 16, rel=1e-4)


def test_a_model_has_not_drifted_from_itself(tiny_model, tiny_tokens):
    model = tiny_model()
    losses, found = compare_models(model, copy.deepcopy(model), tiny_tokens, 64, "test")
    assert losses.dense == losses.pruned
    assert found.kl == {"prose": 0, "code": 0}
    assert found.top1_agreement == {"prose": 1, "code": 1}
    assert found.norms == [0, 0, 0]
    for key in ("entropy", "repetition"):
        assert getattr(found, key).dense == getattr(found, key).pruned


def by_argmax(model, prompts, new_tokens):
    """Greedy text, every token from a whole pass; end of text (1) is never taken."""
    ids = prompts
    for _ in range(new_tokens):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1].clone()
        logits[:, 1] = -torch.inf
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return ids[:, prompts.shape[1] :]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_compared_and_its_text_is_the_greedy_one(tiny_model, tiny_tokens, family):
    model = tiny_model(family)
    other = perturbed(model, size=0.02)
    _, found = compare_models(model, other, tiny_tokens, 256, "test")
    assert all(0 < value < 5 for value in found.kl.values())
    assert len(found.norms) == 3
    written = greedy_text(other, tiny_tokens["prose"], 12, 64)
    assert written.tolist() == by_argmax(other, tiny_tokens["prose"], 12).tolist()


def test_layers_of_different_widths_are_compared_too(tiny_model, tiny_tokens):
    model = tiny_model()
    recipe = Recipe(ratio=0.4, rounds=1, layout="per_layer", neuron_multiple=1)
    pruned = prune(copy.deepcopy(model), tiny_tokens, recipe).model
    _, found = compare_models(model, pruned, tiny_tokens, 256, "test")
    assert all(value > 0 for value in found.kl.values())
    written = greedy_text(pruned, tiny_tokens["code"], 12, 2048)
    assert written.tolist() == by_argmax(pruned, tiny_tokens["code"], 12).tolist()


def test_text_goes_on_past_its_end_and_ignores_what_a_model_says_of_generation(
    tiny_model, tiny_tokens
):
    model = tiny_model()
    plain = greedy_text(model, tiny_tokens["prose"], 20, 2048)
    every = list(range(2, 97, 2))
    settings = model.generation_config
    settings.update(repetition_penalty=9.0, no_repeat_ngram_size=2, suppress_tokens=every)
    assert greedy_text(model, tiny_tokens["prose"], 20, 2048).tolist() == plain.tolist()
    assert model.generation_config is settings
    settings.eos_token_id = [1, *every]
    ended = greedy_text(model, tiny_tokens["prose"], 20, 2048)
    assert ended.shape == (6, 20)
    assert not set(every) & set(ended.flatten().tolist())


def test_text_is_no_longer_than_the_context(tiny_model, tiny_tokens):
    """GPT-2 has an embedding for each position and none beyond."""
    model = tiny_model("gpt2", n_positions=20, max_position_embeddings=20)
    _, found = compare_models(model, perturbed(model), tiny_tokens, 2048, "test")
    assert set(found.repetition.pruned) == {"prose", "code"}


def test_repetition_by_hand():
    assert repetition([1, 2, 3, 4, 5, 6, 7]) == 0
    assert repetition([7] * 48) == pytest.approx(1 - 1 / 45)
    assert repetition([1, 2, 3] * 16) == pytest.approx(1 - 3 / 45)
    assert repetition([1, 2, 3]) == 0


@given(st.lists(st.integers(0, 2), min_size=4, max_size=60))
def test_repetition_is_the_share_of_4_grams_that_were_there_before(ids):
    counts = Counter(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
    again = sum(count - 1 for count in counts.values())
    assert repetition(ids) == pytest.approx(again / counts.total())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("whose", ["dense", "pruned"])
def test_a_model_that_is_not_finite_is_named(pair, tiny_tokens, value, whose):
    """And only a pruned one is a round's fault, which counts as unhealthy."""
    broken = dict(zip(("dense", "pruned"), pair, strict=True))[whose]
    broken.model.layers[1].mlp.down_proj.weight.data[0, 0] = value
    with pytest.raises(InputError, match=f"the {whose} model gives no finite loss on pro") as error:
        compare_models(*pair, tiny_tokens, 256, "test")
    assert isinstance(error.value, NonFiniteLossError) is (whose == "pruned")
    assert "\n" not in str(error.value)


def test_a_loss_that_no_perplexity_holds_is_not_finite(pair, tiny_tokens):
    pair[1].model.norm.weight.data *= 1e5
    with pytest.raises(NonFiniteLossError, match="no finite perplexity on prose"):
        compare_models(*pair, tiny_tokens, 256, "test")


def test_a_domain_without_windows_is_refused(pair, tiny_tokens):
    with pytest.raises(InputError, match="domain code has no windows"):
        compare_models(*pair, {**tiny_tokens, "code": tiny_tokens["code"][:0]}, 256, "test")


def test_models_are_left_as_they_were(pair, tiny_tokens):
    pair[0].train()
    compare_models(*pair, tiny_tokens, 256, "test")
    assert pair[0].training
    assert not pair[1].training
    assert not any(module._forward_hooks for model in pair for module in model.modules())
