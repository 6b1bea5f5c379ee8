"""Perplexity on a tiny model, against a computation token by token."""

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from pruneflow.errors import InputError
from pruneflow.measure.perplexity import perplexity_by_domain


@pytest.fixture(scope="module")
def model(tiny_model) -> LlamaForCausalLM:
    return tiny_model(vocab_size=50, tie_word_embeddings=False).float()


@pytest.fixture(scope="module")
def blocks() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "code": torch.randint(50, (5, 12), generator=generator, dtype=torch.int32),
        "news": torch.randint(50, (3, 9), generator=generator),
    }


def by_hand(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    total = 0.0
    for window in windows.long():
        for position in range(1, len(window)):
            with torch.no_grad():
                logits = model(window[None, :position]).logits[0, -1].double()
            total -= float(logits.log_softmax(-1)[window[position]])
    return total


@pytest.mark.parametrize("batch_tokens", [1, 24, 4096])
def test_perplexity_is_that_of_a_computation_by_hand(model, blocks, batch_tokens):
    result = perplexity_by_domain(model, blocks, batch_tokens, "test")
    assert list(result) == ["code", "news"]
    for domain, windows in blocks.items():
        expected = by_hand(model, windows)
        tokens = windows.shape[0] * (windows.shape[1] - 1)
        assert result[domain]["tokens"] == tokens
        assert result[domain]["nll"] == pytest.approx(expected, rel=1e-5)
        assert result[domain]["perplexity"] == pytest.approx(math.exp(expected / tokens), rel=1e-5)


def test_a_bfloat16_model_is_scored_in_float32(model, blocks):
    """Rounded to bfloat16, the log-probabilities alone would be off by up to 2 %."""
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        logits = half(blocks["news"]).logits[:, :-1].double()
    targets = blocks["news"][:, 1:, None]
    expected = -float(logits.log_softmax(-1).gather(2, targets).sum())
    result = perplexity_by_domain(half, {"news": blocks["news"]}, 4096, "test")
    assert result["news"]["nll"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_is_not_finite_names_the_domain(model, blocks):
    damaged = copy.deepcopy(model)
    # Only this token's embedding is broken, so only the domain that holds it is named.
    present = blocks["news"][0, 0]
    blocks = {**blocks, "code": blocks["code"].clone()}
    blocks["code"][blocks["code"] == present] = (present + 1) % 50
    damaged.model.embed_tokens.weight.data[present] = math.nan
    with pytest.raises(InputError, match="no finite loss on news"):
        perplexity_by_domain(damaged, blocks, 4096, "test")


def test_a_perplexity_beyond_numbers_names_the_domain(model, blocks):
    absurd = copy.deepcopy(model)
    absurd.lm_head.weight.data *= 1e6
    with pytest.raises(InputError, match="no finite perplexity on code"):
        perplexity_by_domain(absurd, blocks, 4096, "test")


def test_a_domain_without_windows_is_refused(model):
    with pytest.raises(InputError, match="domain law has no windows"):
        perplexity_by_domain(model, {"law": torch.zeros(0, 8, dtype=torch.long)}, 64, "test")


def test_the_mode_of_the_model_is_left_as_it_was(model, blocks):
    model.train()
    try:
        perplexity_by_domain(model, blocks, 4096, "test")
        assert model.training
    finally:
        model.eval()
