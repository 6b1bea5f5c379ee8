"""Draws of whole units, intervals for few of them, and how often intervals hold."""

import math

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import binom, norm, t

from pruneflow.judge.intervals import draw_means, estimate, pooled
from pruneflow.judge.retention import mean_over_tasks, perplexity_estimates, task_retention
from tests.unit.evaluation_example import scored

NORMAL = ndtri((np.arange(100_000) + 0.5) / 100_000)
"""The normal distribution, as draws."""


def test_a_unit_is_drawn_as_a_whole():
    first, second = draw_means(np.array([[0.0, 1.0, 5.0], [0.0, 10.0, 50.0]]), 250, seed=0)
    assert len(first) == 250
    assert len(set(first)) == 10  # ways to draw 3 of 3 with replacement
    assert second == pytest.approx(10 * first)


def test_equal_units_are_drawn_as_often_as_they_stand():
    (means,) = draw_means(np.array([[1.0] * 13 + [0.0] * 7]), 20_000, seed=1)
    below = [(means < hits / 20 - 1e-9).mean() for hits in range(21)]
    assert below == pytest.approx(binom.cdf(np.arange(-1, 20), 20, 13 / 20), abs=0.01)


def test_the_seed_decides_the_draws():
    units = np.random.default_rng(0).normal(size=(2, 30))
    assert (draw_means(units, 100, seed=3) == draw_means(units, 100, seed=3)).all()
    assert (draw_means(units, 100, seed=3) != draw_means(units, 100, seed=4)).any()


def test_an_interval_holds_the_middle_of_the_draws():
    found = estimate(0.0, NORMAL)
    assert (found["low"], found["high"]) == pytest.approx((-1.96, 1.96), abs=1e-3)


@pytest.mark.parametrize(("units", "wider"), [(10, 0.1), (40, 0.03), (1000, 0.001)])
def test_few_units_move_the_ends_outwards_as_student_asks(units, wider):
    biased = math.sqrt(1 - 1 / units) * NORMAL
    found = estimate(0.0, biased, units)
    assert found["high"] == pytest.approx(t.ppf(0.975, units - 1), rel=1e-3)
    assert found["high"] / 1.96 - 1 > wider


def test_draws_without_a_number_are_left_out_and_endless_ends_are_none():
    holes = np.concatenate([NORMAL, np.full(50_000, np.nan)])
    assert estimate(0.0, holes) == estimate(0.0, NORMAL)
    endless = np.concatenate([NORMAL, np.full(50_000, np.inf)])
    found = estimate(0.0, endless)
    assert (found["high"], found["low"]) == (None, pytest.approx(norm.ppf(0.025 * 1.5), abs=1e-3))
    nothing = {"value": 2.0, "low": None, "high": None}
    assert estimate(2.0, np.full(9, np.nan)) == nothing
    assert estimate(2.0, NORMAL, units=1) == nothing


@pytest.mark.parametrize("units", [2, 5, 9, 200])
def test_the_mean_of_one_measure_has_students_interval(units):
    deviation, value = 0.7, 3.0
    draws = value + deviation * math.sqrt((units - 1) / units) * NORMAL
    found = estimate(value, pooled([value], [draws], [units]))
    reach = t.ppf(0.975, units - 1) * deviation
    assert (found["low"], found["high"]) == pytest.approx((3 - reach, 3 + reach), rel=1e-3)


def test_the_mean_of_several_measures_has_welchs_interval():
    """Two means of 5 and 9 units with standard errors 0.4 and 0.2."""
    generator = np.random.default_rng(0)
    draws = [
        1 + 0.4 * math.sqrt(4 / 5) * NORMAL,
        5 + 0.2 * math.sqrt(8 / 9) * generator.permutation(NORMAL),
    ]
    freedom = (0.16 + 0.04) ** 2 / (0.16**2 / 4 + 0.04**2 / 8)
    reach = t.ppf(0.975, freedom) * math.sqrt(0.16 + 0.04) / 2
    found = estimate(3.0, pooled([1.0, 5.0], draws, [5, 9]))
    assert (found["low"], found["high"]) == pytest.approx((3 - reach, 3 + reach), rel=5e-3)


def test_measures_without_spread_pool_to_their_mean_and_one_unit_to_nothing():
    same = np.full(100, 2.0)
    assert (pooled([2.0, 2.0], [same, same], [3, 9]) == 2).all()
    assert np.isnan(pooled([0.0, 2.0], [NORMAL, same], [9, 1])).all()


# How often an interval holds what it estimates: 1,000 draws of questions or windows, of each of
# which 300 resamples are made. In 95 % of draws, give or take 2 % by the chance of the simulation.
# Answers are alike as far as both depend on how hard a question is: two normal variables with a
# correlation, each against a threshold. Losses are log-normal. Spreads and accuracies are those of
# SmolLM2-135M (benchmarks/results/gate_limits.json): windows' rises differ by 7 to 36 %.
DRAWS, RESAMPLES = 1000, 300


def share_that_holds(found, truth) -> float:
    """Which share of intervals holds the truth."""
    return sum(one["low"] - 1e-9 <= truth <= one["high"] + 1e-9 for one in found) / len(found)


def ask(generator, questions, dense, pruned, alike):
    """Whether each model answers each question."""
    hardness = generator.normal(size=questions)
    own = generator.normal(size=(2, questions))
    known = math.sqrt(alike) * hardness + math.sqrt(1 - alike) * own
    return [
        (row < ndtri(share)).astype(int) for row, share in zip(known, (dense, pruned), strict=True)
    ]


@pytest.mark.parametrize(
    ("questions", "dense", "pruned", "alike", "chance"),
    [
        (200, 0.64, 0.55, 0.6, 0.5),
        (200, 0.5, 0.42, 0.7, 0.25),
        (40, 0.7, 0.6, 0.6, 0.25),
        (40, 0.64, 0.52, 0.6, 0.2),
    ],
)
def test_intervals_of_a_task_hold_in_95_of_100_draws(questions, dense, pruned, alike, chance):
    generator = np.random.default_rng(0)
    found = [
        task_retention(*ask(generator, questions, dense, pruned, alike), chance, RESAMPLES, draw)[0]
        for draw in range(DRAWS)
    ]
    known = [one for one in found if one.measurable]
    assert len(known) > 0.95 * DRAWS
    shares = {
        "dense": share_that_holds([one.dense for one in found], dense),
        "difference": share_that_holds([one.difference for one in found], pruned - dense),
        "retention": share_that_holds([one.retention for one in known], pruned / dense),
        "above_chance": share_that_holds(
            [one.above_chance for one in known], (pruned - chance) / (dense - chance)
        ),
    }
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


@pytest.mark.parametrize("windows", [4, 9])
def test_intervals_of_perplexity_ratios_hold_in_95_of_100_draws(windows):
    rises = {"news": (0.55, 0.2), "code": (0.4, 0.3), "maths": (0.2, 0.25), "other": (0.95, 0.25)}
    generator = np.random.default_rng(0)
    found = []
    for draw in range(DRAWS):
        before = {name: generator.lognormal(1, 0.3, windows) for name in rises}
        after = {
            name: losses + mean * generator.lognormal(-(spread**2) / 2, spread, windows)
            for (name, (mean, spread)), losses in zip(rises.items(), before.values(), strict=True)
        }
        records = [{name: scored(x) for name, x in side.items()} for side in (before, after)]
        found.append(perplexity_estimates(*records, RESAMPLES, draw))
    single = [
        share_that_holds([one.domains[name] for one in found], math.exp(mean))
        for name, (mean, _) in rises.items()
    ]
    together = math.exp(sum(mean for mean, _ in rises.values()) / len(rises))
    shares = {
        "domains": np.mean(single),
        "mean": share_that_holds([one.mean for one in found], together),
    }
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def means_of_draws(tasks):
    """Means over tasks of simulated answers, and the true means over the same tasks."""
    generator = np.random.default_rng(0)
    for draw in range(DRAWS):
        facts, draws = {}, {}
        for place, (questions, dense, pruned, alike, chance) in enumerate(tasks):
            given = ask(generator, questions, dense, pruned, alike)
            facts[place], draws[place] = task_retention(*given, chance, RESAMPLES, 9 * draw + place)
        chosen = [task for place, task in enumerate(tasks) if facts[place].measurable]
        if chosen:
            difference, retention = mean_over_tasks(facts, draws)
            change = sum(task[2] - task[1] for task in chosen) / len(chosen)
            kept = sum(task[2] / task[1] for task in chosen) / len(chosen)
            yield difference, change, retention, kept


def test_intervals_of_means_over_tasks_hold_in_95_of_100_draws():
    tasks = [
        (200, 0.64, 0.55, 0.6, 0.25),
        (40, 0.7, 0.6, 0.6, 0.25),
        (40, 0.6, 0.55, 0.7, 0.25),
        (40, 0.5, 0.45, 0.5, 0.2),
    ]
    held = np.mean(
        [
            (share_that_holds([difference], change), share_that_holds([retention], kept))
            for difference, change, retention, kept in means_of_draws(tasks)
        ],
        axis=0,
    )
    assert (held >= 0.93).all() and (held <= 0.97).all(), held


def test_tasks_that_are_measurable_by_luck_never_make_a_model_look_better():
    """The dense model hardly beats chance: where it seems to, the pruned one seems the worse."""
    tasks = [(200, 0.58, 0.54, 0.6, 0.5), *[(40, 0.36, 0.34, 0.6, 0.25)] * 2]
    found = list(means_of_draws(tasks))
    assert len(found) > 0.7 * DRAWS
    too_high = [
        (difference["low"] > change, retention["low"] > kept)
        for difference, change, retention, kept in found
    ]
    assert (np.mean(too_high, axis=0) <= 0.025).all()


@pytest.mark.parametrize(("questions", "chance"), [(40, 0.25), (200, 0.5)])
def test_a_model_that_guesses_is_hardly_ever_measurable(questions, chance):
    generator = np.random.default_rng(0)
    lucky = [
        task_retention(*ask(generator, questions, chance, chance, 0.5), chance, RESAMPLES, draw)[0]
        for draw in range(DRAWS)
    ]
    assert sum(one.measurable for one in lucky) <= 0.035 * DRAWS
