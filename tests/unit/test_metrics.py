"""What gates can look at: each metric by its name, and what was not measured."""

import math

import pytest

from pruneflow.judge.compare import compare
from pruneflow.judge.metrics import METRICS, find_metric, known_metrics, measure
from pruneflow.settings.pipeline import EvaluationSettings
from tests.unit.evaluation_example import about, record, summary

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
    metric, part = find_metric("task_retention.arc.easy")
    assert (metric, part) == (METRICS["task_retention"], "arc.easy")


def test_parity_is_what_equal_models_have_and_worse_ones_are_on_its_other_side():
    settings = EvaluationSettings(tasks={"piqa": 200}, bootstrap_samples=200)
    even = {"median": 1.0, "low": 1.0, "high": 1.0}
    slower = {"median": 0.8, "low": 0.7, "high": 0.9}
    dense = record()
    equal = compare(dense, dense, settings)
    equal["latency"] = {"speedup": {"decode": even, "prefill": even}}
    # A worse model: it lost more and is larger than the dense one.
    worse = compare(dense, record(rise=0.5, drop=0.3, kept=1.25), settings)
    worse["latency"] = {"speedup": {"decode": slower, "prefill": slower}}
    sides = {name: metric for name, metric in METRICS.items() if metric.parity is not None}
    assert set(METRICS) - set(sides) == {"reload_ok", "lm_eval_ok", "uncalibrated_domains"}
    for name, metric in sides.items():
        part = {"perplexity_ratio": ".code"}.get(name, ".piqa" if metric.takes_part else "")
        assert measure(name + part, equal)["value"] == metric.parity
        rise = measure(name + part, worse)["value"] - metric.parity
        assert (rise > 0) is (metric.better == "lower"), name
        assert METRICS[name].better in ("lower", "higher")


def test_the_worst_domain_is_the_one_that_may_be_worst():
    """Its windows differ so much that it may have lost more than the one with the highest ratio."""
    unsure = summary()
    unsure["perplexity"]["domains"]["news"]["ratio"] = about(1.7, 1.0, 2.9)
    found = measure("perplexity_ratio_worst", unsure)
    assert found == {**about(1.7, 1.0, 2.9), "domain": "news"}


@pytest.mark.parametrize("high", [None, math.nan, math.inf])
def test_a_domain_without_an_interval_is_never_passed_over_as_not_the_worst(high):
    for name in ("code", "news"):
        unsure = summary()
        unsure["perplexity"]["domains"][name]["ratio"] = about(1.0, 1.0, high)
        assert measure("perplexity_ratio_worst", unsure) is None


def test_a_task_that_is_not_measurable_has_no_figure():
    for name in ("task_retention", "task_above_chance", "task_difference"):
        assert measure(f"{name}.medqa", summary()) is None
        assert measure(f"{name}.arc", summary()) is None


@pytest.mark.parametrize(
    "value", [None, math.nan, math.inf, -math.inf, "1.0", [], {}, about(1.0, None, None)]
)
def test_what_is_not_a_finite_number_with_its_interval_is_no_measurement(value):
    assert measure("mean_retention", summary(mean_retention=value)) is None
    assert measure("mean_retention", summary(mean_retention=about(1.0, 0.9, math.nan))) is None
    assert measure("block_ratio", summary(parameters={"block_ratio": value})) is None


@pytest.mark.parametrize("name", [name for name, *_ in FIGURES])
def test_what_was_not_measured_at_all_is_no_measurement(name):
    assert measure(name, {}) is None
    for nothing in (None, [], "text"):
        assert measure(name, dict.fromkeys(summary(), nothing)) is None


def test_domains_without_calibration_text_are_counted_and_named():
    held = {"code": 0, "law": 4}
    found = measure("uncalibrated_domains", summary(calibration_domains=held))
    assert found == {**about(2.0, 2.0, 2.0), "domain": "code, news"}


@pytest.mark.parametrize("name", ["reload_ok", "lm_eval_ok"])
def test_a_model_that_does_not_load_measures_nought(name):
    broken = summary(reload={"ok": False}, lm_eval={"ok": False})
    assert measure(name, broken)["value"] == 0
