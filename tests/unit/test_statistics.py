"""Mask-Fisher is the squared derivative by a mask, whatever the batches."""

import pytest
import torch

from pruneflow.models.structure import layers_of
from pruneflow.pruning.statistics import mask_fisher, sequence_losses
from tests.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_fisher_is_the_squared_derivative_of_the_loss_by_a_mask(
    tiny_model, tiny_tokens, family
):
    model = tiny_model(family)
    scores = mask_fisher(model, tiny_tokens, 32, "score")
    neuron, group, layer = 7, 1, layers_of(model)[1]
    masks = [torch.ones(40, dtype=torch.double), torch.ones(24, dtype=torch.double)]
    consumers = (layer.mlp_consumer, layer.attention_consumer)
    for mask, consumer in zip(masks, consumers, strict=True):
        consumer.register_forward_pre_hook(lambda _module, args, mask=mask: (args[0] * mask,))

    def derivative(mask, columns, sequence, step=1e-4):
        """Of one sequence's loss, by finite differences."""
        losses = []
        for sign in (1, -1):
            mask[columns] = 1 + sign * step
            losses.append(float(sequence_losses(model, sequence[None])))
        mask[columns] = 1
        return (losses[0] - losses[1]) / (2 * step)

    for row, tokens in enumerate(tiny_tokens.values()):
        by_neuron = [derivative(masks[0], [neuron], sequence) ** 2 for sequence in tokens]
        by_group = [derivative(masks[1], range(8, 16), sequence) ** 2 for sequence in tokens]
        assert float(scores.neurons[1][row, neuron]) == pytest.approx(
            sum(by_neuron) / len(tokens), rel=2e-2, abs=1e-9
        )
        assert float(scores.kv_groups[1][row, group]) == pytest.approx(
            sum(by_group) / len(tokens), rel=2e-2, abs=1e-9
        )


def test_scores_do_not_depend_on_the_batch_size(tiny_model, tiny_tokens):
    model = tiny_model()
    one, many = (mask_fisher(model, tiny_tokens, tokens, "score") for tokens in (16, 96))
    for a, b in zip(one.neurons + one.kv_groups, many.neurons + many.kv_groups, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-12)
    assert one.losses == pytest.approx(many.losses, rel=1e-6)


def test_the_pass_leaves_no_gradients_and_no_hooks(tiny_model, tiny_tokens):
    model = tiny_model()
    mask_fisher(model, tiny_tokens, 32, "score")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_no_domain_shouts_and_weights_count(tiny_model, tiny_tokens):
    model = tiny_model()
    scores = mask_fisher(model, tiny_tokens, 96, "score")
    before = scores.combined({})
    loud = mask_fisher(model, tiny_tokens, 96, "score")
    for tensor in loud.neurons + loud.kv_groups:
        tensor[0] *= 1000
    after = loud.combined({})
    for a, b in zip(before[0] + before[1], after[0] + after[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-9)
    total = sum(float(t.sum()) for t in before[0] + before[1])
    assert total == pytest.approx(1)
    only_prose = scores.combined({"code": 1e-12})
    prose = scores.neurons[0][0] / scores.neurons[0][0].sum()
    assert torch.allclose(only_prose[0][0] / only_prose[0][0].sum(), prose, rtol=1e-6)
