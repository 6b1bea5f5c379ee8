"""Gates use the worse end, refuse what was not measured, and name unknown metrics."""

import json
import math
import subprocess

import pytest
import yaml

from pruneflow.artifacts import sha256_json
from pruneflow.errors import InputError
from pruneflow.judge.compare import Comparison
from pruneflow.judge.gates import Decision, decide, load_gates, refuse
from pruneflow.judge.metrics import known_metrics
from pruneflow.records import parse_record, write_record
from tests.conftest import ROOT
from tests.unit.evaluation_example import TASK_FIGURES, about, gates, summary

SUMMARY = summary()


def accepted(found, *asked, **more) -> bool:
    return decide(found, gates(*asked), **more).accepted


@pytest.mark.parametrize(
    ("metric", "low", "high"),
    [
        ("perplexity_ratio_mean", 1.41, 1.53),
        ("task_difference.siqa", -0.05, 0.03),
        ("block_ratio", 0.2, 0.2),
        ("decode_speedup", 1.1, 1.25),
    ],
)
def test_each_metric_is_judged_by_its_worse_end_and_the_limit_itself_passes(metric, low, high):
    for comparison, end, stricter in (("at_least", low, 1), ("at_most", high, -1)):
        assert accepted(SUMMARY, metric, comparison, end)
        assert accepted(SUMMARY, metric, comparison, end - 0.01 * stricter)
        assert not accepted(SUMMARY, metric, comparison, end + 0.01 * stricter)
    (entry,) = decide(SUMMARY, gates(metric, "at_least", low)).gates
    assert (entry.low, entry.high) == (low, high)
    assert low <= entry.value <= high


def test_a_refusal_gives_a_sentence_with_value_interval_limit_and_reason():
    decision = decide(SUMMARY, gates("perplexity_ratio_mean", "at_most", 1.5))
    assert decision.reasons == [
        "perplexity_ratio_mean: perplexity_ratio_mean is 1.47 (95 % interval 1.41 to 1.53), above "
        "the limit 1.5. It matters."
    ]
    named = decide(SUMMARY, gates("block_ratio", "at_least", 0.3, name="smaller"))
    assert named.reasons == ["smaller: block_ratio is 0.2, below the limit 0.3. It matters."]
    worst = decide(SUMMARY, gates("perplexity_ratio_worst", "at_most", 1.5))
    assert worst.reasons[0].endswith("above the limit 1.5, on code. It matters.")
    assert worst.gates[0].domain == "code"


def test_one_failed_gate_of_many_refuses(tmp_path):
    listed = [
        {"metric": "block_ratio", "comparison": "at_least", "limit": 0.1, "why": "Smaller."},
        {"metric": "task_retention.siqa", "comparison": "at_least", "limit": 0.8, "why": "Same."},
        {"metric": "perplexity_ratio_mean", "comparison": "at_most", "limit": 1.6, "why": "Near."},
    ]
    path = tmp_path / "gates.yaml"
    path.write_text(json.dumps({"run_mode": "enabled", "gates": listed}))
    settings = load_gates(path)
    assert decide(SUMMARY, settings).accepted
    siqa = {**TASK_FIGURES["siqa"], "retention": about(0.9, 0.7, 1.1)}
    worse = summary(tasks={**TASK_FIGURES, "siqa": siqa})
    decision = decide(worse, settings)
    assert not decision.accepted
    assert [gate.metric for gate in decision.gates if not gate.passed] == ["task_retention.siqa"]
    assert len(decision.reasons) == 1


@pytest.mark.parametrize("value", [None, about(1.0, None, None), about(1.0, None, 1.1)])
@pytest.mark.parametrize(("comparison", "limit"), [("at_least", -1e9), ("at_most", 1e9)])
def test_a_measurement_without_an_interval_is_a_refusal(value, comparison, limit, tmp_path):
    decision = decide(summary(mean_retention=value), gates("mean_retention", comparison, limit))
    assert not decision.accepted
    assert decision.gates[0].value is None
    assert "was not measured or is not finite" in decision.reasons[0]
    write_record(tmp_path / "decision.json", decision)


def test_a_missing_measurement_is_a_refusal():
    for metric in ("task_retention", "task_above_chance", "task_difference"):
        assert not accepted(SUMMARY, f"{metric}.arc", "at_least", -9)
    assert not accepted(SUMMARY, "perplexity_ratio.law", "at_most", 9)


@pytest.mark.parametrize("metric", ["task_retention", "task_above_chance", "task_difference"])
def test_a_task_that_is_not_measurable_is_refused_with_the_reason(metric):
    decision = decide(SUMMARY, gates(f"{metric}.medqa", "at_least", -1e9))
    assert decision.reasons == [
        f"{metric}.medqa: {metric}.medqa was not measured or is not finite (the dense model's own "
        "accuracy, 0.3 (95 % interval 0.18 to 0.42), is not above chance, 0.25). It matters."
    ]
    medqa = {**TASK_FIGURES["medqa"], "dense": about(1.0, None, None)}
    alone = summary(tasks={**TASK_FIGURES, "medqa": medqa})
    decision = decide(alone, gates(f"{metric}.medqa", "at_least", -1e9))
    assert "accuracy, 1, is not above chance, 0.25" in decision.reasons[0]


ENTRY = {"metric": "block_ratio", "comparison": "at_least", "limit": 0, "why": "x"}


@pytest.mark.parametrize(
    "metric", ["perplexity", "task_retention", "block_ratio.code", "task_retention.", "os.system"]
)
def test_an_unknown_metric_is_an_error_that_names_the_known_ones(metric, tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text(json.dumps({"run_mode": "enabled", "gates": [{**ENTRY, "metric": metric}]}))
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
        ({"gates": [{"metric": "block_ratio", "against": "nobody"}]}, "against"),
        ({"gates": [{**ENTRY, "limit": math.nan}]}, "limit"),
        ({"gates": [{**ENTRY, "limit": math.inf}]}, "limit"),
    ],
)
def test_a_bad_gates_file_is_one_line(changes, message, tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump({"run_mode": "enabled", "gates": [ENTRY], **changes}))
    with pytest.raises(InputError, match=message) as caught:
        load_gates(path)
    assert "\n" not in str(caught.value)


def test_a_stale_report_is_refused_whatever_it_says():
    stale = ["data/model is not the model of the report.", "configs/ was changed since."]
    settings = gates("mean_retention", "at_least", 0.9)
    decision = decide(SUMMARY, settings, stale=stale)
    assert not decision.accepted
    assert decision.reasons == stale
    assert decision.gates[0].passed
    assert not decision.may_register
    assert decide(SUMMARY, settings, stale=[]).accepted
    failed = decide(SUMMARY, gates("mean_retention", "at_least", 0.99), stale=stale)
    assert failed.reasons[:2] == stale and len(failed.reasons) == 3


def test_domains_without_calibration_text_are_named():
    settings = gates("uncalibrated_domains", "at_most", 0)
    assert decide(SUMMARY, settings).accepted
    decision = decide(summary(calibration_domains={"code": 0, "law": 3}), settings)
    assert decision.reasons == [
        "uncalibrated_domains: uncalibrated_domains is 2, above the limit 0, on code, news. It "
        "matters."
    ]


@pytest.mark.parametrize(
    ("run_mode", "limit", "enforced", "may_register"),
    [("enabled", 0.9, True, True), ("enabled", 0.99, True, False), ("dry_run", 0.99, False, True)],
)
def test_a_refusal_is_recorded_and_enforced_unless_it_is_a_dry_run(
    run_mode, limit, enforced, may_register
):
    decision = decide(SUMMARY, gates("mean_retention", "at_least", limit, run_mode))
    assert decision.accepted is (limit == 0.9)
    assert bool(decision.reasons) is not decision.accepted
    assert decision.gates[0].value == 0.96
    assert (decision.enforced, decision.may_register) == (enforced, may_register)


def test_disabled_gates_check_nothing_and_accept_nothing():
    decision = decide(SUMMARY, gates("mean_retention", "at_least", 0, "disabled"))
    assert decision.gates == []
    assert not decision.accepted
    assert not decision.enforced
    assert decision.reasons == ["The gates are disabled (run_mode), so nothing was checked."]
    assert decision.may_register


def test_a_decision_names_what_it_judged():
    settings = gates("mean_retention", "at_least", 0.9)
    decision = decide(SUMMARY, settings)
    assert decision.model == "a" * 64
    assert decision.digests == {
        **SUMMARY.digests.to_json(),
        "summary": sha256_json(SUMMARY.to_json()),
        "gates": sha256_json(settings.model_dump(mode="json")),
    }
    stricter = decide(SUMMARY, gates("mean_retention", "at_least", 0.91))
    assert stricter.digests["gates"] != decision.digests["gates"]


def test_a_run_that_ended_early_is_refused():
    settings = gates("mean_retention", "at_least", 0.9)
    decision = refuse("round@r2", "the model gives NaN", settings)
    assert not decision.accepted
    assert not decision.may_register
    assert decision.model is None
    assert decision.reasons == [
        "round@r2 ended in an error, so there is no model to judge: the model gives NaN"
    ]
    assert decision.digests == {"gates": decide(SUMMARY, settings).digests["gates"]}
    tried = refuse("report", "x", gates("mean_retention", "at_least", 0.9, "dry_run"))
    assert not tried.enforced


def test_a_decision_without_a_version_of_its_schema_is_read_as_the_first() -> None:
    """MLflow keeps decisions that were made before records had one."""
    stored = decide(SUMMARY, gates("mean_retention", "at_least", 0.9)).to_json()
    del stored["schema_version"]
    stored["digests"]["benchmarks"] = stored["digests"].pop("questions")  # its former name
    assert parse_record(Decision, stored, "decision.json").accepted


def differs(path: str) -> bool:
    """Whether a file is not the committed one, or there is no telling."""
    command = ["git", "diff", "--quiet", "HEAD", "--", path]
    return subprocess.run(command, cwd=ROOT, check=False).returncode != 0


@pytest.mark.skipif(
    differs("configs/gates.yaml") and not differs("benchmarks/results/gate_limits.json"),
    reason="configs/gates.yaml has been edited here",
)
def test_the_committed_limits_accept_every_measured_seed_and_refuse_the_control():
    """Sizes, perplexity and answers are measured; other inputs of gates are made up, and good."""
    runs = json.loads((ROOT / "benchmarks/results/gate_limits.json").read_text())["runs"]
    limits = load_gates(ROOT / "configs/gates.yaml")
    outcomes = {}
    for run in runs:
        found = {key: run[key] for key in Comparison.model_fields}
        calibrated = dict.fromkeys(found["perplexity"]["domains"], 8)
        decision = decide(summary(calibration_domains=calibrated, **found), limits)
        outcomes[run["score"], run["seed"]] = decision.accepted, decision.reasons
    seeds = {run: outcome for run, outcome in outcomes.items() if run[0] != "random"}
    assert len(seeds) >= 2
    assert all(passed for passed, _ in seeds.values()), seeds
    assert not outcomes["random", 0][0]
