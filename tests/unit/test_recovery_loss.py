"""Recovery: what it learns from, and in what order."""

from collections import Counter
from itertools import islice

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from pruneflow.recovery.distillation_loss import divergence, loss_and_gradient
from pruneflow.recovery.training_order import batches, learning_rate, sequence_order
from pruneflow.settings.recovery import RecoverySettings
from tests.unit.recovery_example import random_blocks, settings


def logits(seed, rows=3, length=5, vocabulary=11):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, vocabulary, generator=generator, dtype=torch.double)


def test_a_student_that_agrees_with_its_teacher_has_no_loss_and_no_gradient():
    same = logits(0).float()
    tokens = torch.zeros(3, 5, dtype=torch.long)
    loss, gradient = loss_and_gradient(same, same.clone(), tokens, 3, RecoverySettings())
    assert float(loss) == 0
    assert not gradient.any()
    assert divergence(same, same.clone()) == 0


@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0.0), (2.5, 0.0), (1.5, 0.3), (1.0, 1.0)])
@pytest.mark.parametrize("chunk", [1 << 25, 40])
def test_loss_and_gradient_are_those_of_autograd(monkeypatch, temperature, hard, chunk):
    monkeypatch.setattr("pruneflow.recovery.distillation_loss.CHUNK", chunk)
    student, teacher = logits(0).requires_grad_(), logits(1)
    tokens = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(2))
    wanted = RecoverySettings(temperature=temperature, hard_label_share=hard)
    loss, gradient = loss_and_gradient(student, teacher, tokens, 6, wanted)
    loss = float(loss)
    soft = temperature**2 * kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    labelled = student[:, :-1].flatten(0, 1)
    text = cross_entropy(labelled, tokens[:, 1:].flatten(), reduction="sum")
    expected = (1 - hard) * soft / (6 * 5) + hard * text / (6 * 4)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-10, atol=1e-15)


# The order and the rate


def test_an_epoch_holds_every_sequence_once_and_the_next_is_in_another_order():
    sizes = {"prose": 8, "code": 4, "maths": 3}
    every = {(name, row) for name, size in sizes.items() for row in range(size)}
    order = list(islice(sequence_order(sizes, None, seed=0), 45))
    epochs = [order[start : start + 15] for start in (0, 15, 30)]
    assert all(set(epoch) == every for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(
    ("weights", "mix"),
    [(None, {"a": 9, "b": 3}), ({}, {"a": 6, "b": 6}), ({"b": 3.0}, {"a": 3, "b": 9})],
)
def test_every_batch_mixes_domains_by_weight_or_by_size(weights, mix):
    order = list(islice(sequence_order({"a": 30, "b": 10}, weights, seed=0), 240))
    for start in range(0, 240, 12):
        assert Counter(name for name, _ in order[start : start + 12]) == mix
    # Whatever its share, a domain's own rows come once an epoch.
    rows = [row for name, row in order if name == "b"]
    assert all(sorted(rows[start : start + 10]) == list(range(10)) for start in range(0, 60, 10))


def test_the_order_is_a_function_of_seed_and_step():
    blocks = random_blocks()
    wanted = settings(batch_sequences=5)
    whole = list(islice(batches(blocks, None, wanted), 8))
    later = list(islice(batches(blocks, None, wanted), 5, 8))
    assert all(torch.equal(one, two) for one, two in zip(whole[5:], later, strict=True))
    other = list(islice(batches(blocks, None, settings(batch_sequences=5, seed=1)), 8))
    assert not all(torch.equal(one, two) for one, two in zip(whole, other, strict=True))


def test_the_rate_rises_to_its_peak_and_falls_to_its_floor():
    wanted = RecoverySettings(learning_rate=1.0, warmup_share=0.1, floor_share=0.2)
    rates = [learning_rate(step, 100, wanted) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0 == max(rates)
    assert rates[54] == pytest.approx(0.6)
    assert rates[99] == pytest.approx(0.2)
    assert rates[9:] == sorted(rates[9:], reverse=True)
