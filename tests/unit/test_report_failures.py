"""Failures and missing measurements are shown on page, card and table, and never pass."""

import copy
import re

from pruneflow.judge.gates import GatesSettings, decide
from pruneflow.report.comparison_table import comparison
from pruneflow.report.model_card import render_card
from pruneflow.report.number_format import points
from pruneflow.report.verdict import verdict
from tests.unit.report_example import (
    BASELINE,
    DENSE_REFERENCE,
    LATENCY,
    PRUNED,
    ROUNDS,
    SETTINGS,
    a_round,
    delivering,
    page_of,
    summarise,
    the_page,
    visible,
)

NBSP = "\u00a0"
SKIPPED = {
    "round": "r3",
    "status": "skipped",
    "delivered": "r2",
    "delivered_digest": "2" * 64,
    "dense": DENSE_REFERENCE,
    "parent": "r2",
    "target": {"ratio": 0.2},
    "digest": "2" * 64,
}


def test_page_names_nothing_of_this_where_all_went_well():
    text = visible(the_page())
    for words in ("Warning", "GPU memory", "unhealthy", "not measurable:", "fails", "Does not"):
        assert words not in text


def test_summary_and_page_survive_pruning_that_ended_early():
    rounds = [*ROUNDS[:2], SKIPPED]
    summary = summarise(rounds=rounds, evaluation=delivering(2, PRUNED))
    assert summary.model.delivered == "r2"
    assert summary.rounds[2].mean_ratio is None
    assert "skipped" in visible(page_of(summary, rounds=rounds))


def test_a_task_the_dense_model_cannot_do_is_shown_and_fails_its_gate():
    baseline = copy.deepcopy(BASELINE)
    baseline["tasks"]["siqa"]["correct"] = [0] * 200
    summary = summarise(baseline=baseline)
    piqa, siqa = summary.tasks["piqa"], summary.tasks["siqa"]
    assert siqa.retention is None and siqa.above_chance is None
    assert summary.mean_retention["value"] == piqa.retention["value"]
    assert "SIQA" not in verdict(summary)
    why = "not measurable: the dense model's own accuracy, 0.0 % (0.0 to 0.0), is not above chance"
    plain = visible(page_of(summary))
    assert f"{why}, 33.3 %" in plain
    assert "mean over 1 of 2 tasks" in plain
    row = plain[plain.index("siqa 0.0 %") :].split("200 of")[0]
    assert row.endswith(f"{points(siqa.difference).note.replace(NBSP, ' ')} \u2013 \u2013 33.3 % ")
    card = render_card(summary, SETTINGS.model).replace("\u202f", " ").replace(NBSP, " ")
    assert "| siqa (acc_norm) | 0.0 % | 47.0 % | not measurable |" in card
    assert f"{why}, 33.3 % |" in card
    assert "siqa not measurable" in page_of(summary)  # the chart's text alternative
    gate = {"comparison": "at_least", "limit": 0.1, "why": "It must know."}
    for metric in ("task_retention.siqa", "task_above_chance.siqa", "task_difference.siqa"):
        gates = GatesSettings(run_mode="enabled", gates=[{**gate, "metric": metric}])
        decision = decide(summary, gates)
        assert not decision.accepted and "was not measured" in decision.reasons[0]


def test_no_mean_is_shown_where_no_task_is_measurable():
    baseline = copy.deepcopy(BASELINE)
    for task in baseline["tasks"].values():
        task["correct"] = [0] * 200
    summary = summarise(baseline=baseline)
    assert summary.mean_retention is None and summary.mean_difference is None
    assert "it keeps no measurable accuracy" in verdict(summary)
    text = visible(page_of(summary))
    assert "Accuracy kept, mean over 0 of 2 tasks not measurable" in text
    assert "mean over 0 of 2 tasks \u2013 \u2013 not measurable" in text
    assert "| mean over 0 of 2 tasks |  |  | not measurable |" in render_card(
        summary, SETTINGS.model
    )
    gate = {"metric": "mean_retention", "comparison": "at_least", "limit": 0.1, "why": "Know."}
    decision = decide(summary, GatesSettings(run_mode="enabled", gates=[gate]))
    assert not decision.accepted and "was not measured" in decision.reasons[0]


def test_an_unhealthy_round_is_shown_with_all_its_reasons_and_what_is_delivered():
    broken = a_round(3, 0.2035, 12.0, 84_580_000)
    skipped = {**SKIPPED, "round": "r4", "parent": "r3"}
    rounds = [*ROUNDS[:2], broken, skipped]
    summary = summarise(rounds=rounds, evaluation=delivering(2, PRUNED))
    assert broken["status"] == "unhealthy" and len(broken["health"]["reasons"]) == 6
    page = page_of(summary, rounds=rounds)
    text = visible(page)
    for reason in broken["health"]["reasons"]:
        assert reason in text
    assert "Kept for inspection; the run delivers r2." in text
    assert "An earlier round ended the pruning; the run delivers r2." in text
    assert '<small class="bad">unhealthy</small>' in page
    assert "Knee: r2" in text
    first = broken["health"]["reason"].removesuffix(".")
    assert f"It is round r2, because a later round broke a health limit (r3: {first})." in text
    (label,) = re.findall(r'aria-label="(Validation perplexity[^"]+)"', page)
    assert "r2 knee at" in label and "r3 unhealthy at" in label


def test_verdict_says_when_no_round_was_healthy():
    summary = summarise(rounds=[a_round(1, 0.07, 12.0, 98_700_000)], evaluation=BASELINE)
    assert summary.model.delivered == "dense"
    assert "It is the dense model itself, because a later round broke" in verdict(summary)


def test_a_round_that_gives_nan_is_shown_with_dashes():
    reason = "The pruned model gives no finite loss on code."
    verdict_only = {"healthy": False, "reasons": [reason], "reason": reason}
    verdict_only |= {"worst_domain": None, "worst_ratio": None}
    broken = {**a_round(3, 0.2035, 12.0, 84_580_000), "health": verdict_only}
    broken |= {"validation": None, "drift": None}
    rounds = [*ROUNDS[:2], broken]
    summary = summarise(rounds=rounds, evaluation=delivering(2, PRUNED))
    text, dashes = visible(page_of(summary, rounds=rounds)), " ".join(["\u2013"] * 7)
    assert f"112 926 000 {dashes} {reason} Kept for inspection" in text
    assert "No knee: there are too few rounds" in text


def test_page_says_when_the_model_does_not_reload():
    reload = {"ok": False, "text": None, "reason": "missing keys: lm_head.weight"}
    memory = {"dense": LATENCY["memory"]["dense"], "pruned": None}
    summary = summarise(latency={**LATENCY, "reload": reload, "memory": memory})
    text = visible(page_of(summary))
    assert "Does not reload" in text
    assert "missing keys: lm_head.weight" in text
    assert "Peak memory 912.0 MB \u2013 \u2013" in text


def test_page_and_card_say_when_the_lm_eval_command_fails():
    nothing = dict.fromkeys(("metric", "accuracy", "correct"))
    failed = {**LATENCY["lm_eval"], "ok": False, "reason": "KeyError: 'piqa <1>'", **nothing}
    summary = summarise(latency={**LATENCY, "lm_eval": failed})
    text = visible(page_of(summary))
    assert "lm_eval fails on the directory: KeyError: 'piqa <1>'" in text
    assert "lm_eval runs" not in text
    assert "lm_eval \\ --model hf \\ --model_args" in text
    card = render_card(summary, SETTINGS.model)
    assert "lm-eval's own command failed on the directory (KeyError: 'piqa <1>')" in card
    assert failed["command"] in card


def test_page_and_card_show_warnings_about_widths():
    warnings = ["MLP width 1056 is no multiple of 64: set it to <64>", "attention width 12 is odd"]
    summary = summarise(latency={**LATENCY, "warnings": warnings})
    text, card = visible(page_of(summary)), render_card(summary, SETTINGS.model)
    for warning in warnings:
        assert f"Warning : {warning}" in text
        assert f"Warning: {warning}." in card
    assert "All widths" not in text


def test_page_and_table_show_gpu_memory_where_a_gpu_was_used():
    memory = {
        "dense": {**LATENCY["memory"]["dense"], "device_peak": 612_300_000},
        "pruned": {**LATENCY["memory"]["pruned"], "device_peak": 431_100_000},
    }
    summary = summarise(latency={**LATENCY, "memory": memory})
    assert "Peak GPU memory 612.3 MB 431.1 MB \u221229.6 %" in visible(page_of(summary))
    assert "Peak GPU memory" in [row.measure for row in comparison(summary)["Size"]]


def test_a_missing_interval_is_a_dash():
    latency = copy.deepcopy(LATENCY)
    latency["speedup"]["decode"].update(low=None, high=None)
    latency["speedup"]["prefill"].update(low=None)
    summary = summarise(latency=latency)
    rows = {row.measure: row.change for row in comparison(summary)["Speed"]}
    assert rows["Decode, tokens/s"] == "\u00d7\u202f1.19 (\u2013)"
    assert rows["Prefill, tokens/s"].replace(NBSP, " ") == "\u00d7\u202f1.21 (\u2013 to 1.26)"
    assert "\u00d7 1.19 \u2013 1.11 to 1.29" in visible(page_of(summary))
