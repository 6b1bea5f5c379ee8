"""Two records side by side: what is put together, and what cannot be compared."""

import re
from typing import Any

import pytest

from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.judge.compare import Comparison, Names, compare
from pruneflow.judge.gates import GatesSettings, decide
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.records import RecordT, parse_record, read_record, write_record
from pruneflow.settings.pipeline import EvaluationSettings
from tests.unit.evaluation_example import TASKS, record, summary

SETTINGS = EvaluationSettings(tasks={"piqa": 200}, bootstrap_samples=300)
DENSE = record("d")
PRUNED = record("e", rise=0.4, drop=0.05, kept=0.8)


def changed(one: RecordT, **changes: Any) -> RecordT:
    return one.model_copy(update=changes)


def test_sizes_are_those_of_the_two_models():
    found = compare(DENSE, PRUNED, SETTINGS)
    assert found.bytes.to_json() == {"dense": 280_000, "pruned": 224_000, "ratio": 0.8}
    assert found.parameters.to_json() == {
        "dense": 140_000,
        "pruned": 112_000,
        "ratio": pytest.approx(0.2),
        "block_weights": {"dense": 100_000, "pruned": 80_000},
        "block_ratio": pytest.approx(0.2),
    }


def test_perplexity_is_compared_domain_by_domain(tmp_path):
    compared = compare(DENSE, PRUNED, SETTINGS)
    found = compared.perplexity
    before, after = DENSE.perplexity["code"], PRUNED.perplexity["code"]
    code = found.domains["code"]
    assert list(found.domains) == ["code", "news"]
    assert (code.dense, code.pruned) == (before["perplexity"], after["perplexity"])
    assert code.ratio["value"] == after["perplexity"] / before["perplexity"]
    assert (code.windows, code.tokens, code.bytes) == (9, 9 * 255, 4 * 9 * 255)
    assert code.bits_per_byte.dense == before["bits_per_byte"]
    assert code.bits_per_byte.pruned == after["bits_per_byte"]
    ratios = {name: domain.ratio for name, domain in found.domains.items()}
    assert found.worst in [{"domain": name, **ratio} for name, ratio in ratios.items()]
    assert found.worst["value"] == max(ratio["value"] for ratio in ratios.values())
    write_record(tmp_path / "compared.json", compared)
    assert read_record(Comparison, tmp_path / "compared.json") == compared


def test_tasks_say_how_they_were_asked_and_leave_out_single_answers():
    found = compare(DENSE, PRUNED, SETTINGS)
    piqa = found.tasks["piqa"]
    assert list(found.tasks) == list(TASKS)
    for key in ("metric", "chance", "questions", "output_type", "shots", "version", "digest"):
        assert getattr(piqa, key) == getattr(PRUNED.tasks["piqa"], key)
    assert not {"correct", "acc", "acc_norm", "exact_match", "answers"} & set(piqa.to_json())
    for model, one in (("dense", DENSE), ("pruned", PRUNED)):
        assert getattr(piqa, model)["value"] == sum(one.tasks["piqa"].correct) / 200
    assert piqa.retention["high"] < 1
    kept = [task.retention["value"] for task in found.tasks.values() if task.measurable]
    assert found.mean_retention["value"] == pytest.approx(sum(kept) / len(kept))


def test_the_seed_decides_the_intervals():
    found = compare(DENSE, PRUNED, SETTINGS)
    assert found == compare(DENSE, PRUNED, SETTINGS)
    other = compare(DENSE, PRUNED, SETTINGS.model_copy(update={"seed": 9}))
    assert found.mean_retention["value"] == other.mean_retention["value"]
    assert found.mean_retention != other.mean_retention


def test_tasks_and_domains_are_drawn_apart_so_that_their_mean_is_surer_than_each():
    dense, pruned = (
        changed(
            one,
            tasks=dict.fromkeys(("piqa", "again", "third", "last"), one.tasks["piqa"]),
            perplexity=dict.fromkeys(("code", "b", "c", "d"), one.perplexity["code"]),
        )
        for one in (DENSE, PRUNED)
    )
    found = compare(dense, pruned, SETTINGS)
    for mean, single in (
        (found.mean_difference, found.tasks["piqa"].difference),
        (found.perplexity.mean_ratio, found.perplexity.domains["code"].ratio),
    ):
        assert mean["value"] == pytest.approx(single["value"])
        assert mean["high"] - mean["low"] < 0.65 * (single["high"] - single["low"])


def test_a_candidate_equal_to_the_reference_keeps_everything_and_passes():
    found = compare(DENSE, record("d"), SETTINGS)
    one, none = {"value": 1, "low": 1, "high": 1}, {"value": 0, "low": 0, "high": 0}
    assert found.mean_retention == found.perplexity.mean_ratio == one
    assert found.mean_difference == none
    for task in found.tasks.values():
        assert (task.difference, task.retention, task.above_chance) == (none, one, one)
    limits = [
        ("perplexity_ratio_mean", "at_most", 1),
        ("perplexity_ratio_worst", "at_most", 1),
        ("perplexity_ratio.news", "at_most", 1),
        ("task_retention.piqa", "at_least", 1),
        ("task_above_chance.siqa", "at_least", 1),
        ("task_difference.boolq", "at_least", 0),
        ("mean_retention", "at_least", 1),
        ("mean_difference", "at_least", 0),
        ("bytes_ratio", "at_most", 1),
    ]
    gates = [
        {"metric": metric, "comparison": comparison, "limit": limit, "why": "It is the same."}
        for metric, comparison, limit in limits
    ]
    settings = GatesSettings.model_validate({"run_mode": "enabled", "gates": gates})
    decision = decide(summary(**dict(found)), settings)
    assert decision.accepted, decision.reasons


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "f" * 64}, r"baseline and evaluation differ in tokenizer \(b{12} and f{12}"),
        ({"held_out": "f" * 64}, r"differ in held-out text \(c{12} and f{12}\)"),
        ({"questions": "f" * 64}, r"differ in questions and prompts \(d{12} and f{12}\)"),
        ({"dtype": "float32"}, r"differ in compute\.dtype \(bfloat16 and float32\)"),
        ({"tasks": {**PRUNED.tasks, "arc": PRUNED.tasks["piqa"]}}, r"the same tasks \(arc\)"),
        ({"tasks": {"piqa": PRUNED.tasks["piqa"]}}, r"not asked the same tasks \(boolq\)"),
        ({"perplexity": {"code": PRUNED.perplexity["code"]}}, r"the same domains \(news\)"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line_that_says_why(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        compare(DENSE, changed(PRUNED, **changes), SETTINGS)
    assert "\n" not in str(caught.value)
    assert re.search(r": (run|set) \S", str(caught.value))  # what to do about it


def test_a_record_that_lacks_what_it_was_measured_on_is_refused():
    for key in ("tokenizer", "held_out", "questions", "dtype"):
        lacking = {name: value for name, value in DENSE.to_json().items() if name != key}
        with pytest.raises(DamagedArtifactError, match=rf"baseline.json .*\({key}: field required"):
            parse_record(Evaluation, lacking, "baseline.json")


def test_an_error_names_the_two_as_asked():
    with pytest.raises(InputError, match="version 3, in production, and evaluation differ in"):
        compare(
            changed(DENSE, dtype="float16"),
            PRUNED,
            SETTINGS,
            Names("version 3, in production,", "evaluation"),
        )
