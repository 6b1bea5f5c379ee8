"""Ratios by hand, and a bootstrap that keeps both models' results on a question together."""

import math

import numpy as np
import pytest
from scipy.stats import norm, t

from pruneflow.errors import InputError
from pruneflow.judge.retention import (
    geometric_mean,
    mean_over_tasks,
    perplexity_estimates,
    perplexity_ratios,
    task_retention,
    worst_ratio,
)
from tests.unit.evaluation_example import right, scored


def loss(perplexity: float, tokens: int = 100) -> dict[str, float]:
    return {"nll": tokens * math.log(perplexity), "tokens": tokens, "perplexity": perplexity}


def facts(dense, pruned, chance=0.0, samples=2000, seed=0):
    return task_retention(dense, pruned, chance, samples, seed)[0]


def width(estimate) -> float:
    return estimate["high"] - estimate["low"]


def test_figures_of_a_task_by_hand():
    found = facts([1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 1, 0], chance=0.25)
    assert found.dense["value"] == pytest.approx(6 / 8)
    assert found.pruned["value"] == pytest.approx(4 / 8)
    assert found.difference["value"] == pytest.approx(-2 / 8)
    assert found.retention["value"] == pytest.approx(4 / 6)
    assert found.above_chance["value"] == pytest.approx((4 - 2) / (6 - 2))
    for key in ("dense", "pruned", "difference", "retention", "above_chance"):
        assert (
            getattr(found, key)["low"] < getattr(found, key)["value"] < getattr(found, key)["high"]
        )


def test_the_bootstrap_is_paired():
    """Same two accuracies; one pair agrees question by question, the other by chance only."""
    dense = [1] * 120 + [0] * 80
    paired = facts(dense, [1] * 110 + [0] * 90)
    unpaired = facts(dense, [0] * 80 + [1] * 110 + [0] * 10)
    for key in ("difference", "retention"):
        assert getattr(paired, key)["value"] == getattr(unpaired, key)["value"]
        assert width(getattr(paired, key)) < 0.4 * width(getattr(unpaired, key))


def brute_force(statistic, units: int, draws: int = 20_000):
    """The interval of a statistic of whole units drawn by their numbers."""
    drawn = np.random.default_rng(9).integers(0, units, size=(draws, units))
    tail = norm.cdf(math.sqrt(units / (units - 1)) * t.ppf(0.025, units - 1))
    return np.quantile(statistic(drawn), [tail, 1 - tail])


def test_the_interval_is_that_of_drawing_whole_questions():
    dense, pruned = np.array(right(0.65, 1, of=120)), np.array(right(0.55, 2, of=120))
    found = facts(dense.tolist(), pruned.tolist(), chance=0.25, samples=20_000)
    statistics = {
        "dense": lambda drawn: dense[drawn].mean(axis=1),
        "difference": lambda drawn: (pruned - dense)[drawn].mean(axis=1),
        "retention": lambda drawn: pruned[drawn].sum(axis=1) / dense[drawn].sum(axis=1),
        "above_chance": lambda drawn: (
            (pruned[drawn].mean(axis=1) - 0.25) / (dense[drawn].mean(axis=1) - 0.25)
        ),
    }
    for key, statistic in statistics.items():
        ends = brute_force(statistic, 120)
        assert [getattr(found, key)["low"], getattr(found, key)["high"]] == pytest.approx(
            ends, abs=0.015
        ), key


def test_answers_to_different_questions_or_to_none_are_refused():
    with pytest.raises(InputError, match=r"different questions \(2 and 3\)"):
        facts([1, 0], [1, 0, 1])
    with pytest.raises(InputError, match="no question was asked"):
        facts([], [])


def test_a_dense_model_at_chance_is_not_measurable():
    """The lower end of its interval must be above chance: being equal is not enough."""
    dense, pruned = right(0.6, 1, of=100), right(0.5, 1, of=100)
    lowest = facts(dense, pruned).dense["low"]
    at, below = facts(dense, pruned, lowest), facts(dense, pruned, math.nextafter(lowest, 0))
    assert not at.measurable
    assert at.retention is at.above_chance is None
    assert at.difference == below.difference
    assert below.measurable
    assert below.retention["value"] < 1


@pytest.mark.parametrize("dense", [[0, 0, 0], [1]])
def test_nothing_right_or_one_question_is_not_measurable(dense):
    found = facts(dense, [1] * len(dense))
    assert not found.measurable
    assert found.retention is found.above_chance is None


def three_tasks(samples=2000):
    """Two tasks that the dense model can do, and one that it cannot."""
    asked = {
        "easy": (right(0.8, 1, of=90), right(0.7, 1, of=90), 0.5),
        "hard": (right(0.5, 2, of=60), right(0.3, 3, of=60), 0.2),
        "luck": (right(0.26, 4, of=80), right(0.9, 5, of=80), 0.25),
    }
    parts = {
        name: task_retention(*given, samples, place)
        for place, (name, given) in enumerate(asked.items())
    }
    tasks = {name: part[0] for name, part in parts.items()}
    draws = {name: part[1] for name, part in parts.items()}
    return asked, tasks, mean_over_tasks(tasks, draws)


def test_means_are_over_the_measurable_tasks_only():
    _, tasks, means = three_tasks()
    assert [name for name, task in tasks.items() if task.measurable] == ["easy", "hard"]
    for key in ("difference", "retention"):
        by_hand = (getattr(tasks["easy"], key)["value"] + getattr(tasks["hard"], key)["value"]) / 2
        assert getattr(means, key)["value"] == pytest.approx(by_hand)


def test_the_interval_of_a_mean_is_that_of_drawing_each_task_anew():
    asked, _, means = three_tasks(samples=20_000)
    generator = np.random.default_rng(9)
    ratios, differences = [], []
    for name in ("easy", "hard"):
        dense, pruned = np.array(asked[name][0]), np.array(asked[name][1])
        drawn = generator.integers(0, len(dense), size=(20_000, len(dense)))
        ratios.append(pruned[drawn].sum(axis=1) / dense[drawn].sum(axis=1))
        differences.append((pruned - dense)[drawn].mean(axis=1))
    for key, draws in (("retention", ratios), ("difference", differences)):
        ends = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
        assert [getattr(means, key)["low"], getattr(means, key)["high"]] == pytest.approx(
            ends, abs=0.015
        )
        assert width(getattr(means, key)) > ends[1] - ends[0]  # for few questions


def test_a_mean_over_no_measurable_task_is_none():
    found, draws = task_retention([0, 0, 1], [1, 1, 1], 0.5, 100, 0)
    assert mean_over_tasks({"luck": found}, {"luck": draws}) == (None, None)


def test_ratios_mean_and_worst_by_hand():
    ratios = perplexity_ratios(
        {"a": loss(10), "b": loss(4), "c": loss(5)}, {"a": loss(20), "b": loss(4), "c": loss(20)}
    )
    assert ratios == pytest.approx({"a": 2.0, "b": 1.0, "c": 4.0})
    assert geometric_mean(ratios) == pytest.approx(2.0)
    assert worst_ratio(ratios) == ("c", pytest.approx(4.0))
    assert worst_ratio({**ratios, "d": math.nan})[0] == "d"


def test_measurements_of_other_domains_tokens_or_windows_are_refused():
    with pytest.raises(InputError, match=r"same domains \(a\)"):
        perplexity_ratios({"a": loss(2)}, {"b": loss(2)})
    with pytest.raises(InputError, match=r"different numbers of tokens of a \(100 and 99\)"):
        perplexity_ratios({"a": loss(2)}, {"a": loss(2, tokens=99)})
    with pytest.raises(InputError, match="no domain was measured"):
        perplexity_ratios({}, {})
    with pytest.raises(InputError, match=r"different windows of a \(2 and 1\)"):
        perplexity_estimates({"a": scored([2, 2], 50)}, {"a": scored([2], 100)}, 100, 0)


GENERATOR = np.random.default_rng(3)
LOSSES = {name: GENERATOR.lognormal(1, 0.3, 9) for name in ("law", "code")}
RISES = {"law": GENERATOR.lognormal(-1, 0.4, 9), "code": GENERATOR.lognormal(0, 0.3, 9)}
DENSE = {name: scored(losses) for name, losses in LOSSES.items()}
PRUNED = {name: scored(LOSSES[name] + RISES[name]) for name in LOSSES}


def test_the_interval_of_a_perplexity_ratio_is_that_of_drawing_whole_windows():
    found = perplexity_estimates(DENSE, PRUNED, 20_000, 0)
    generator = np.random.default_rng(9)
    logs = {}
    for name in LOSSES:
        drawn = generator.integers(0, 9, size=(20_000, 9))
        before, after = (np.array(side[name]["windows"])[drawn] for side in (DENSE, PRUNED))
        logs[name] = (after.sum(axis=1) - before.sum(axis=1)) / DENSE[name]["tokens"]
        value = PRUNED[name]["perplexity"] / DENSE[name]["perplexity"]
        wider = math.sqrt(9 / 8) * t.ppf(0.975, 8) / norm.ppf(0.975)
        ends = np.quantile(logs[name], [0.025, 0.975])
        by_hand = np.exp(math.log(value) + wider * (ends - math.log(value)))
        domain = found.domains[name]
        assert domain["value"] == pytest.approx(value)
        assert [domain["low"], domain["high"]] == pytest.approx(by_hand, rel=0.015)
    assert found.worst == "code"
    value = math.sqrt(found.domains["law"]["value"] * found.domains["code"]["value"])
    assert found.mean["value"] == pytest.approx(value)
    ends = np.quantile(np.mean(list(logs.values()), axis=0), [0.025, 0.975])
    spread = math.sqrt(9 / 8) * (ends - math.log(value))
    by_hand = [np.exp(math.log(value) + t.ppf(0.975, f) / 1.96 * spread) for f in (8, 16)]
    assert by_hand[0][0] < found.mean["low"] < by_hand[1][0] + 0.01
    assert by_hand[1][1] - 0.01 < found.mean["high"] < by_hand[0][1]


def test_windows_are_paired():
    """What is hard for both models does not widen the interval; windows put in another order do."""
    code = PRUNED["code"]["windows"]
    other = {**PRUNED, "code": {**PRUNED["code"], "windows": code[3:] + code[:3]}}
    own, mixed = (perplexity_estimates(DENSE, after, 2000, 0) for after in (PRUNED, other))
    assert own.domains["code"]["value"] == mixed.domains["code"]["value"]
    assert own.domains["law"] == mixed.domains["law"]
    assert width(own.domains["code"]) < 0.7 * width(mixed.domains["code"])


def test_one_window_has_no_interval_and_neither_has_a_mean_with_it():
    before = {"law": DENSE["law"], "code": scored([2.0])}
    after = {"law": PRUNED["law"], "code": scored([2.5])}
    found = perplexity_estimates(before, after, 200, 0)
    assert found.domains["law"]["low"] is not None
    for estimate in (found.domains["code"], found.mean):
        assert estimate["low"] is estimate["high"] is None
        assert estimate["value"] > 1
