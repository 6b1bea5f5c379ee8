"""Metrics of gates: each by its name, and what was not measured."""

import math

import pytest
from pydantic import ValidationError

from pruneflow.judge.compare import compare
from pruneflow.judge.metrics import METRICS, find_metric, known_metrics, measure
from pruneflow.settings.pipeline import EvaluationSettings
from tests.unit.evaluation_example import (
    LM_EVAL,
    PERPLEXITY,
    RELOAD,
    TASK_FIGURES,
    about,
    domain,
    record,
    summary,
)

# A metric as gates spell it, its value in the example with both ends, and the domains it names.
FIGURES = [
    ("perplexity_ratio_mean", 1.47, 1.41, 1.53, None),
    ("perplexity_ratio_worst", 1.8, 1.7, 1.9, "code"),
    ("perplexity_ratio.news", 1.2, 1.1, 1.25, None),
    ("task_retention.piqa", 0.9375, 0.88, 1.01, None),
    ("task_above_chance.piqa", 0.71, 0.4, 1.1, None),
    ("task_difference.siqa", -0.01, -0.05, 0.03, None),
    ("mean_retention", 0.96, 0.91, 1.02, None),
    ("mean_difference", -0.025, -0.055, 0.005, None),
    ("block_ratio", 0.2, 0.2, 0.2, None),
    ("bytes_ratio", 0.8, 0.8, 0.8, None),
    ("reload_ok", 1.0, 1.0, 1.0, None),
    ("lm_eval_ok", 1.0, 1.0, 1.0, None),
    ("decode_speedup", 1.19, 1.1, 1.25, None),
    ("prefill_speedup", 1.21, 1.15, 1.3, None),
    ("uncalibrated_domains", 0.0, 0.0, 0.0, None),
]


@pytest.mark.parametrize(("name", "value", "low", "high", "domain"), FIGURES)
def test_each_metric_is_read_from_the_comparison(name, value, low, high, domain):
    assert measure(name, summary()) == {**about(value, low, high), "domain": domain}


def test_every_registered_metric_is_tested_above():
    assert [name.partition(".")[0] for name, *_ in FIGURES] == list(METRICS)


def test_the_known_metrics_are_listed_as_gates_spell_them():
    listed = known_metrics().split(", ")
    assert [name.partition(".")[0] for name in listed] == list(METRICS)
    assert {name for name in listed if "." in name} == {
        "perplexity_ratio.DOMAIN",
        "task_retention.TASK",
        "task_above_chance.TASK",
        "task_difference.TASK",
    }


@pytest.mark.parametrize(
    "name",
    ["perplexity", "task_retention", "task_retention.", "block_ratio.code", "os.system", "", "."],
)
def test_an_unknown_metric_is_not_found_and_has_no_measurement(name):
    assert find_metric(name) is None
    assert measure(name, summary()) is None


def test_a_part_may_hold_dots():
    assert find_metric("task_retention.arc.easy") is METRICS["task_retention"]
    easy = summary(tasks={"arc.easy": TASK_FIGURES["piqa"]})
    assert measure("task_retention.arc.easy", easy)["value"] == 0.9375


def timing(speedup: float):
    """The example's timing with another speed-up, the same in each repeat."""
    same = dict.fromkeys(("median", "low", "high", "min", "max"), speedup)
    speed = dict.fromkeys(("prefill", "decode", "first_token"), same)
    return {**summary().latency.to_json(), "speedup": speed}


def test_parity_is_what_equal_models_have_and_worse_ones_are_on_its_other_side():
    settings = EvaluationSettings(tasks={"piqa": 200}, bootstrap_samples=200)
    dense = record()
    equal = summary(latency=timing(1.0), **dict(compare(dense, dense, settings)))
    # A worse model: it lost more and is larger than the dense one.
    larger = record(rise=0.5, drop=0.3, kept=1.25)
    worse = summary(latency=timing(0.8), **dict(compare(dense, larger, settings)))
    sides = {name: metric for name, metric in METRICS.items() if metric.parity is not None}
    assert set(METRICS) - set(sides) == {"reload_ok", "lm_eval_ok", "uncalibrated_domains"}
    for name, metric in sides.items():
        part = {"perplexity_ratio": ".code"}.get(name, ".piqa" if metric.part else "")
        assert measure(name + part, equal)["value"] == metric.parity
        rise = measure(name + part, worse)["value"] - metric.parity
        assert (rise > 0) is (metric.better == "lower"), name
        assert METRICS[name].better in ("lower", "higher")


def with_ratio(name: str, ratio):
    domains = {**PERPLEXITY["domains"], name: domain(ratio)}
    return summary(perplexity={**PERPLEXITY, "domains": domains})


def test_the_worst_domain_is_the_one_that_may_be_worst():
    """Its windows differ so much that it may have lost more than the one with the highest ratio."""
    found = measure("perplexity_ratio_worst", with_ratio("news", about(1.7, 1.0, 2.9)))
    assert found == {**about(1.7, 1.0, 2.9), "domain": "news"}


@pytest.mark.parametrize("name", ["code", "news"])
def test_a_domain_without_an_interval_counts_as_the_worst(name):
    assert measure("perplexity_ratio_worst", with_ratio(name, about(1.0, 1.0, None))) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "text", [], {}])
def test_a_record_holds_no_figure_that_is_not_a_finite_number(value):
    for figure in (value, about(value, 0.9, 1.1), about(1.0, 0.9, value)):
        with pytest.raises(ValidationError):
            summary(mean_retention=figure)


@pytest.mark.parametrize("name", ["reload_ok", "decode_speedup", "uncalibrated_domains"])
def test_two_evaluations_have_no_speed_and_no_reload(name):
    compared = compare(record(), record(), EvaluationSettings(bootstrap_samples=100))
    assert measure(name, compared) is None


@pytest.mark.parametrize("name", ["reload_ok", "lm_eval_ok"])
def test_a_model_that_does_not_load_scores_zero(name):
    broken = summary(reload={**RELOAD, "ok": False}, lm_eval={**LM_EVAL, "ok": False})
    assert measure(name, broken)["value"] == 0
