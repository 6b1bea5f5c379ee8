"""Statistics are derivatives by masks and plain sums, gathered in one pass that leaves no trace."""

import gc
import weakref

import pytest
import torch

from pruneflow.errors import PruneflowError
from pruneflow.models.structure import layers_of
from pruneflow.pruning.statistics import collect
from pruneflow.pruning.token_losses import GRADIENTS
from pruneflow.pruning.unit_recorder import ACTIVATIONS, KINDS, MASKS, WEIGHT_GRADIENTS
from tests.conftest import FAMILIES, consumer_inputs, sequence_losses

ALL = (ACTIVATIONS, MASKS, WEIGHT_GRADIENTS)


def _collect(model, tokens, batch_tokens=48, needs=ALL, **options):
    return collect(model, tokens, batch_tokens, "score", needs=needs, **options)


def _assert_close(one, other):
    assert one.sums.keys() == other.sums.keys()
    for key, values in one.sums.items():
        assert torch.allclose(values, other.sums[key], rtol=1e-8, atol=1e-14), key
    assert torch.allclose(one.loss, other.loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_give_the_derivative_of_each_sequences_loss_by_a_mask(
    tiny_model, tiny_tokens, family
):
    model = tiny_model(family)
    statistics = _collect(model, tiny_tokens, needs=(MASKS,))
    layer = layers_of(model)[1]
    # The columns of one unit of each kind: neuron 7, query head 2, KV group 1.
    columns = layer.heads_per_group * layer.head_dim
    units = {
        "neurons": (layer.mlp_consumer, 7, [7]),
        "heads": (
            layer.attention_consumer,
            2,
            list(range(2 * layer.head_dim, 3 * layer.head_dim)),
        ),
        "kv_groups": (layer.attention_consumer, 1, list(range(columns, 2 * columns))),
    }
    for kind, (consumer, unit, channels) in units.items():
        for row, tokens in enumerate(tiny_tokens.values()):
            losses = []
            for step in (2e-3, -2e-3):

                def mask(_module, args, step=step, channels=channels):
                    x = args[0].clone()
                    x[..., channels] *= 1 + step
                    return (x,)

                with consumer.register_forward_pre_hook(mask):
                    losses.append(sequence_losses(model, tokens))
            derivatives = (losses[0] - losses[1]) / 4e-3  # [sequences]
            squared = statistics.means("z_squared")[kind][1][row, unit]
            absolute = statistics.means("z_absolute")[kind][1][row, unit]
            assert float(squared) == pytest.approx(float(derivatives.square().mean()), rel=1e-2)
            assert float(absolute) == pytest.approx(float(derivatives.abs().mean()), rel=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_gradients_are_those_of_autograd_sequence_by_sequence(
    tiny_model, tiny_tokens, family
):
    model = tiny_model(family)
    tokens = tiny_tokens["code"][:2]
    got = _collect(model, {"code": tokens}, needs=(WEIGHT_GRADIENTS,)).sums
    layer = layers_of(model)[1]
    for kind in KINDS:
        expected = torch.zeros(getattr(layer, kind), dtype=torch.double)
        for member in layer.members(kind):
            weight = member.linear.weight.requires_grad_(True)
            for sequence in tokens:
                (gradient,) = torch.autograd.grad(sequence_losses(model, sequence[None]), weight)
                products = (weight * gradient).abs().detach()
                if type(member.linear).__name__ == "Conv1D":
                    products = products.T
                if member.axis == "in":
                    products = products.T
                for channel, unit in enumerate(member.units.tolist()):
                    if unit >= 0:
                        expected[unit] += products[channel].sum()
            weight.requires_grad_(False)
        assert torch.allclose(got["weight_gradient", kind, 1][0], expected, rtol=1e-9)


def test_activation_sums_are_those_of_the_consumers_inputs(tiny_model, tiny_tokens):
    model = tiny_model()
    statistics = _collect(model, tiny_tokens)
    layer = layers_of(model)[2]
    for kind, consumer in (("neurons", layer.mlp_consumer), ("columns", layer.attention_consumer)):
        x = consumer_inputs(model, tiny_tokens["code"], consumer)
        assert torch.allclose(statistics.sums["x", kind, 2][1], x.sum(0))
        assert torch.allclose(statistics.sums["x_squared", kind, 2][1], x.square().sum(0))
    assert statistics.tokens.tolist() == [96, 96]
    assert statistics.sequences.tolist() == [6, 6]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_statistics_do_not_depend_on_the_batch_size(tiny_model, tiny_tokens, gradient):
    model = tiny_model()
    one, many = (
        _collect(model, tiny_tokens, tokens, gradient=gradient, draws=2, seed=3)
        for tokens in (16, 64)  # batches of 1, and of 4 and 2
    )
    _assert_close(one, many)


def test_sampled_labels_have_the_expectation_of_the_true_fisher(tiny_model, tiny_tokens):
    model = tiny_model(vocab_size=3)
    tokens = tiny_tokens["prose"][:1, :4] % 3
    layer = layers_of(model)[2]
    mask = torch.ones(layer.neurons, dtype=torch.double, requires_grad=True)
    layer.mlp_consumer.register_forward_pre_hook(lambda _module, args: (args[0] * mask,))
    logits = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)  # [3, V]

    def derivative(loss):
        return torch.autograd.grad(loss, mask, retain_graph=True)[0]

    # Labels of different tokens are independent and their mean gradient is 0: squares add up.
    expected = sum(
        logits[t, label].exp().detach() * derivative(-logits[t, label] / 3).square()
        for t in range(3)
        for label in range(3)
    )
    many = tokens.expand(3000, 4)  # draws are a sequence's own
    drawn = _collect(model, {"prose": many}, 4000, (MASKS,), gradient="sampled")
    got = drawn.means("z_squared")["neurons"][2][0]
    assert float(got.sum() / expected.sum()) == pytest.approx(1, abs=0.1)
    assert float(torch.corrcoef(torch.stack([got, expected]))[0, 1]) > 0.97


def test_labels_are_sampled_as_often_as_the_model_expects_them():
    chances = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.double)
    even = (torch.arange(1000, dtype=torch.double) + 0.5) / 1000
    losses = GRADIENTS["sampled"](
        chances.log().expand(1, 1000, 4), torch.zeros(1, 1000), even[None]
    )
    for chance in chances:
        drawn = (losses + chance.log()).abs() < 1e-9
        assert int(drawn.sum()) == pytest.approx(1000 * float(chance), abs=1)


def test_each_draw_of_a_sequence_is_its_own_and_draws_are_averaged(tiny_model, tiny_tokens):
    model = tiny_model()
    one, two = (
        _collect(model, tiny_tokens, needs=(MASKS,), gradient="sampled", draws=draws)
        for draws in (1, 2)
    )
    a, b = (statistics.sums["z_squared", "neurons", 1] for statistics in (one, two))
    assert not torch.allclose(a, b, rtol=1e-2)
    assert 0.5 < float(a.sum() / b.sum()) < 2


def test_the_seed_decides_what_is_drawn(tiny_model, tiny_tokens):
    model = tiny_model()
    same, again, other = (
        _collect(model, tiny_tokens, needs=(MASKS,), gradient="sampled", seed=seed)
        for seed in (0, 0, 1)
    )
    key = ("z_squared", "heads", 0)
    assert torch.equal(same.sums[key], again.sums[key])
    assert not torch.allclose(same.sums[key], other.sums[key])
    assert same.losses == other.losses  # of the text, whatever gradient is taken


def test_the_pass_leaves_no_gradients_no_hooks_and_no_graph(tiny_model, tiny_tokens, monkeypatch):
    model = tiny_model().requires_grad_(True)  # even where a caller forgot to freeze the weights
    graphs, register = [], torch.Tensor.register_hook

    def spy(tensor, hook):
        graphs.append(weakref.ref(hook))
        return register(tensor, hook)

    monkeypatch.setattr(torch.Tensor, "register_hook", spy)
    with model.register_forward_hook(
        lambda _module, _args, output: graphs.append(weakref.ref(output.logits))
    ):
        _collect(model, tiny_tokens, 16)
    gc.collect()
    assert len(graphs) == 12 * (1 + 3 * (2 + 7))  # logits; consumers and linears of 3 layers
    assert all(graph() is None for graph in graphs)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failing_pass_leaves_no_hooks(tiny_model, tiny_tokens):
    model = tiny_model()
    with pytest.raises(IndexError):
        _collect(model, {"beyond the vocabulary": tiny_tokens["prose"] + 97})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_statistic_that_is_not_finite_is_named(tiny_model, tiny_tokens):
    model = tiny_model()
    layers_of(model)[1].mlp_consumer.weight.data[0, 0] = float("nan")
    with pytest.raises(PruneflowError, match="is NaN or infinite"):
        _collect(model, tiny_tokens)
