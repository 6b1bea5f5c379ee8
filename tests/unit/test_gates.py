"""Gates compare, refuse what was not measured, and name what they do not know."""

import copy
import json
import subprocess

import pytest

from pruneflow.artifacts import sha256_json, write_json
from pruneflow.errors import InputError
from pruneflow.evaluation.gates import (
    METRICS,
    GatesSettings,
    decide,
    known_metrics,
    load_gates,
    may_register,
)
from tests.conftest import ROOT

SUMMARY = {
    "perplexity": {
        "domains": {"code": {"ratio": 1.8}, "news": {"ratio": 1.2}},
        "mean_ratio": 1.47,
        "worst": {"domain": "code", "ratio": 1.8},
    },
    "tasks": {"piqa": {"retention": 0.93}, "siqa": {"retention": 0.97}},
    "mean_retention": 0.95,
    "parameters": {"block_ratio": 0.2},
    "reload": {"ok": True},
    "digests": {"pruned": "a" * 64},
}


def gates(metric: str, comparison: str, limit: float, run_mode: str = "enabled") -> GatesSettings:
    entry = {"metric": metric, "comparison": comparison, "limit": limit, "why": "It matters."}
    return GatesSettings.model_validate({"run_mode": run_mode, "gates": [entry]})


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("perplexity_ratio_mean", 1.47),
        ("perplexity_ratio_worst", 1.8),
        ("perplexity_ratio.news", 1.2),
        ("task_retention.piqa", 0.93),
        ("task_retention.siqa", 0.97),
        ("mean_retention", 0.95),
        ("block_ratio", 0.2),
        ("reload_ok", 1.0),
    ],
)
def test_each_metric_is_compared_both_ways_and_the_limit_itself_passes(metric, value):
    accepted = {
        (comparison, limit): decide(SUMMARY, gates(metric, comparison, limit))["accepted"]
        for comparison in ("at_least", "at_most")
        for limit in (value - 0.01, value, value + 0.01)
    }
    assert accepted == {
        ("at_least", value - 0.01): True,
        ("at_least", value): True,
        ("at_least", value + 0.01): False,
        ("at_most", value - 0.01): False,
        ("at_most", value): True,
        ("at_most", value + 0.01): True,
    }
    decision = decide(SUMMARY, gates(metric, "at_least", value))
    assert decision["gates"][0]["value"] == value


def test_every_registered_metric_is_tested_above():
    assert len(METRICS) == 7  # perplexity_ratio and task_retention take a name


def test_a_refusal_gives_a_sentence_with_value_limit_and_reason():
    decision = decide(SUMMARY, gates("perplexity_ratio_mean", "at_most", 1.3))
    assert decision["reasons"] == [
        "perplexity_ratio_mean: perplexity_ratio_mean is 1.47, above the limit 1.3. It matters."
    ]


def test_one_failed_gate_of_many_refuses(tmp_path):
    listed = [
        {"metric": "block_ratio", "comparison": "at_least", "limit": 0.1, "why": "Smaller."},
        {"metric": "task_retention.siqa", "comparison": "at_least", "limit": 0.8, "why": "Same."},
        {"metric": "perplexity_ratio_mean", "comparison": "at_most", "limit": 1.6, "why": "Near."},
    ]
    path = tmp_path / "gates.yaml"
    path.write_text(json.dumps({"run_mode": "enabled", "gates": listed}))
    settings = load_gates(path)
    assert decide(SUMMARY, settings)["accepted"]
    worse = copy.deepcopy(SUMMARY)
    worse["tasks"]["siqa"]["retention"] = 0.5
    decision = decide(worse, settings)
    assert not decision["accepted"]
    assert [gate["metric"] for gate in decision["gates"] if not gate["passed"]] == [
        "task_retention.siqa"
    ]
    assert len(decision["reasons"]) == 1


def test_a_model_that_does_not_reload_is_refused():
    broken = {**SUMMARY, "reload": {"ok": False}}
    assert not decide(broken, gates("reload_ok", "at_least", 1))["accepted"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf"), "1.0"])
@pytest.mark.parametrize("comparison", ["at_least", "at_most"])
def test_a_measurement_that_is_not_a_finite_number_is_a_refusal(value, comparison, tmp_path):
    limit = 0.0 if comparison == "at_least" else 1e9
    summary = {**SUMMARY, "mean_retention": value}
    decision = decide(summary, gates("mean_retention", comparison, limit))
    assert not decision["accepted"]
    assert decision["gates"][0]["value"] is None
    assert "was not measured or is not finite" in decision["reasons"][0]
    write_json(tmp_path / "decision.json", decision)


def test_a_missing_measurement_is_a_refusal():
    assert not decide(SUMMARY, gates("task_retention.arc", "at_least", 0))["accepted"]
    without = {key: value for key, value in SUMMARY.items() if key != "perplexity"}
    assert not decide(without, gates("perplexity_ratio_mean", "at_most", 9))["accepted"]


@pytest.mark.parametrize(
    "metric", ["perplexity", "task_retention", "block_ratio.code", "task_retention.", "os.system"]
)
def test_an_unknown_metric_is_an_error_that_names_the_known_ones(metric, tmp_path):
    path = tmp_path / "gates.yaml"
    entry = {"metric": metric, "comparison": "at_least", "limit": 0, "why": "x"}
    path.write_text(json.dumps({"run_mode": "enabled", "gates": [entry]}))
    with pytest.raises(InputError, match=r"task_retention\.TASK") as caught:
        load_gates(path)
    assert known_metrics() in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_mode": "maybe"}, "run_mode"),
        ({"gates": []}, "gates"),
        ({"extra": 1}, "unknown key extra"),
        ({"gates": [{"metric": "block_ratio", "comparison": "above"}]}, "comparison"),
    ],
)
def test_a_bad_gates_file_is_one_line(changes, message, tmp_path):
    entry = {"metric": "block_ratio", "comparison": "at_least", "limit": 0, "why": "x"}
    path = tmp_path / "gates.yaml"
    path.write_text(json.dumps({"run_mode": "enabled", "gates": [entry], **changes}))
    with pytest.raises(InputError, match=message):
        load_gates(path)


def test_dry_run_records_the_refusal_and_does_not_enforce_it():
    decision = decide(SUMMARY, gates("mean_retention", "at_least", 0.99, "dry_run"))
    assert not decision["accepted"]
    assert decision["reasons"]
    assert not decision["enforced"]
    assert may_register(decision)


def test_disabled_gates_check_nothing_and_accept_nothing():
    decision = decide(SUMMARY, gates("mean_retention", "at_least", 0, "disabled"))
    assert decision["gates"] == []
    assert not decision["accepted"]
    assert not decision["enforced"]
    assert decision["reasons"] == ["The gates are disabled (run_mode), so nothing was checked."]
    assert may_register(decision)


def test_enabled_gates_are_enforced():
    refused = decide(SUMMARY, gates("mean_retention", "at_least", 0.99))
    assert refused["enforced"]
    assert not may_register(refused)
    assert may_register(decide(SUMMARY, gates("mean_retention", "at_least", 0.9)))


def test_a_decision_names_what_it_judged():
    decision = decide(SUMMARY, gates("mean_retention", "at_least", 0.9))
    assert decision["summary"] == sha256_json(SUMMARY)
    assert decision["model"] == "a" * 64


@pytest.mark.skipif(
    subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", "configs/gates.yaml"], cwd=ROOT, check=False
    ).returncode
    != 0,
    reason="configs/gates.yaml has been edited here, or this is no git checkout",
)
def test_the_committed_limits_accept_every_measured_seed_and_refuse_the_control():
    runs = json.loads((ROOT / "benchmarks/results/gate_limits.json").read_text())["runs"]
    limits = load_gates(ROOT / "configs/gates.yaml")
    accepted = {}
    for run in runs:
        domain, ratio = run["perplexity_ratio_worst"]
        measured = copy.deepcopy(SUMMARY)
        measured["parameters"]["block_ratio"] = run["block_ratio"]
        measured["perplexity"]["mean_ratio"] = run["perplexity_ratio_mean"]
        measured["perplexity"]["worst"] = {"domain": domain, "ratio": ratio}
        measured["tasks"] = run["tasks"]
        accepted[run["score"], run["seed"]] = decide(measured, limits)["accepted"]
    assert accepted == {
        ("mask_fisher", 0): True,
        ("mask_fisher", 1): True,
        ("random", 0): False,
    }
