"""Ratios by hand, and a bootstrap that keeps each question's two answers together."""

import math

import numpy as np
import pytest

from pruneflow.config import HealthSettings
from pruneflow.errors import InputError
from pruneflow.evaluation.health import check_round
from pruneflow.evaluation.retention import (
    geometric_mean,
    perplexity_ratios,
    retention,
    worst_ratio,
)


def loss(perplexity: float, tokens: int = 100) -> dict[str, float]:
    return {
        "nll": tokens * math.log(perplexity) if math.isfinite(perplexity) else perplexity,
        "tokens": tokens,
        "perplexity": perplexity,
    }


def answers(seed: int, share: float, of: int = 200) -> list[int]:
    return (np.random.default_rng(seed).random(of) < share).astype(int).tolist()


def test_identical_answers_keep_everything_with_certainty():
    correct = answers(0, 0.6)
    result = retention(correct, correct, samples=500, seed=3)
    assert result["retention"] == result["low"] == result["high"] == 1
    assert result["dense"] == result["pruned"] == sum(correct) / len(correct)


def test_retention_is_the_ratio_of_accuracies():
    result = retention([1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], samples=200, seed=0)
    assert result["dense"] == pytest.approx(4 / 6)
    assert result["pruned"] == pytest.approx(3 / 6)
    assert result["retention"] == pytest.approx(3 / 4)
    assert result["low"] < 3 / 4 < result["high"]


def test_the_bootstrap_is_paired():
    """Same two accuracies; one pair agrees question by question, the other by chance only."""
    dense = [1] * 120 + [0] * 80
    agreeing = [1] * 110 + [0] * 90
    crossing = [0] * 80 + [1] * 110 + [0] * 10
    paired = retention(dense, agreeing, samples=2000, seed=0)
    unpaired = retention(dense, crossing, samples=2000, seed=0)
    assert paired["retention"] == unpaired["retention"]
    assert paired["high"] - paired["low"] < 0.4 * (unpaired["high"] - unpaired["low"])


def test_the_interval_is_that_of_drawing_whole_questions():
    dense, pruned = np.array(answers(1, 0.65)), np.array(answers(2, 0.55))
    drawn = np.random.default_rng(9).integers(0, 200, size=(20_000, 200))
    ratios = pruned[drawn].sum(axis=1) / dense[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    result = retention(dense.tolist(), pruned.tolist(), samples=20_000, seed=4)
    assert result["low"] == pytest.approx(low, abs=0.01)
    assert result["high"] == pytest.approx(high, abs=0.01)


def test_the_seed_decides_the_interval():
    dense, pruned = answers(1, 0.65), answers(2, 0.55)
    first = retention(dense, pruned, samples=100, seed=0)
    assert first == retention(dense, pruned, samples=100, seed=0)
    assert first != retention(dense, pruned, samples=100, seed=1)


def test_answers_to_different_questions_are_refused():
    with pytest.raises(InputError, match="different questions"):
        retention([1, 0], [1, 0, 1], samples=100, seed=0)


def test_a_task_the_dense_model_cannot_do_is_not_measurable():
    result = retention([0, 0, 0], [1, 0, 0], samples=100, seed=0)
    assert (result["dense"], result["pruned"]) == (0, pytest.approx(1 / 3))
    assert result["retention"] is result["low"] is result["high"] is None


def test_ratios_mean_and_worst_by_hand():
    ratios = perplexity_ratios(
        {"a": loss(10), "b": loss(4), "c": loss(5)}, {"a": loss(20), "b": loss(4), "c": loss(20)}
    )
    assert ratios == pytest.approx({"a": 2.0, "b": 1.0, "c": 4.0})
    assert geometric_mean(ratios) == pytest.approx(2.0)
    assert worst_ratio(ratios) == ("c", pytest.approx(4.0))


def test_measurements_of_other_domains_or_tokens_are_refused():
    with pytest.raises(InputError, match="same domains"):
        perplexity_ratios({"a": loss(2)}, {"b": loss(2)})
    with pytest.raises(InputError, match="different numbers of tokens of a"):
        perplexity_ratios({"a": loss(2)}, {"a": loss(2, tokens=99)})


@pytest.mark.parametrize(("perplexity", "healthy"), [(29.0, True), (30.0, True), (31.0, False)])
def test_health_follows_the_worst_domain(perplexity, healthy):
    verdict = check_round(
        {"a": loss(10), "b": loss(10)},
        {"a": loss(11), "b": loss(perplexity)},
        HealthSettings(max_perplexity_ratio=3),
    )
    assert verdict["healthy"] is healthy
    assert verdict["worst_domain"] == "b"
    assert verdict["worst_ratio"] == pytest.approx(perplexity / 10)
    assert "limit of 3" in verdict["reason"]


@pytest.mark.parametrize("perplexity", [math.nan, math.inf])
def test_a_perplexity_that_is_not_finite_is_never_healthy(perplexity):
    verdict = check_round(
        {"a": loss(10), "b": loss(10)},
        {"a": loss(perplexity), "b": loss(11)},
        HealthSettings(max_perplexity_ratio=3),
    )
    assert verdict["healthy"] is False
    assert verdict["worst_domain"] == "a"
    assert verdict["worst_ratio"] is None
