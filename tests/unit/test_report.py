"""The summary puts measurements side by side; page, card and table show all of it."""

import copy
import io
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from pruneflow.errors import InputError
from pruneflow.judge.summary import Summary
from pruneflow.records import read_record, write_record
from pruneflow.report.chart_style import library
from pruneflow.report.comparison_table import comparison
from pruneflow.report.model_card import render_card
from pruneflow.report.number_format import (
    Figure,
    count,
    decimal,
    megabytes,
    milliseconds,
    percent,
    points,
    ratio,
    share,
    signed,
    times,
)
from pruneflow.report.result_charts import WIDEST, retention_chart
from pruneflow.report.result_table import result_table
from pruneflow.settings.pipeline import parse_settings
from tests.unit.report_example import (
    CALIBRATION,
    DOCUMENTS,
    PERPLEXITY,
    PRUNED,
    RECOVERY,
    ROUNDS,
    SETTINGS,
    VALIDATION,
    changed,
    charts_of,
    page_of,
    summarise,
    the_page,
    visible,
)


def test_summary_measures_ratios_by_hand():
    summary = summarise()
    assert summary.parameters.block_ratio == pytest.approx(1 - 84_580_000 / 106_168_320)
    assert summary.parameters.ratio == pytest.approx(1 - 112_926_000 / 134_515_008)
    code = summary.perplexity.domains["code"]
    assert code.ratio["value"] == pytest.approx(7.93 / 4.61)
    assert code.ratio["low"] < 7.93 / 4.61 < code.ratio["high"]
    assert code.bits_per_byte.pruned == pytest.approx(3060 * math.log2(7.93) / 12852)
    assert summary.perplexity.worst == {"domain": "code", **code.ratio}
    product = math.prod(pruned / dense for dense, pruned in PERPLEXITY.values())
    assert summary.perplexity.mean_ratio["value"] == pytest.approx(product ** (1 / 8))
    piqa = summary.tasks["piqa"]
    assert piqa.retention["value"] == pytest.approx(127 / 136)
    assert piqa.above_chance["value"] == pytest.approx(27 / 36)
    assert piqa.difference["value"] == pytest.approx(-0.045)
    assert summary.mean_retention["value"] == pytest.approx((127 / 136 + 94 / 99) / 2)
    assert summary.mean_difference["value"] == pytest.approx(-0.035)
    assert summary.rounds[0].mean_ratio == pytest.approx((1.09**7 * 1.153) ** (1 / 8))
    assert summary.model.delivered == "r3"
    assert summary.knee == "r1"
    assert summary.disk.pruned - summary.bytes.pruned == 2_105_368


def test_a_summary_is_the_same_after_it_was_written_and_read(tmp_path):
    summary = summarise()
    write_record(tmp_path / "summary.json", summary)
    assert read_record(Summary, tmp_path / "summary.json") == summary
    assert json.loads((tmp_path / "summary.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("tokenizer", "tokenizer"),
        ("held_out", "held-out text"),
        ("questions", "questions and prompts"),
        ("dtype", "compute.dtype"),
    ],
)
def test_summary_refuses_evaluations_that_cannot_be_compared(key, name):
    with pytest.raises(InputError, match=f"differ in {name}"):
        summarise(evaluation={**PRUNED, key: "other"})


def test_summary_refuses_the_evaluation_of_another_model():
    other = {**PRUNED, "model": {**PRUNED["model"], "delivered_digest": "9" * 64}}
    with pytest.raises(InputError, match="not that of round r3"):
        summarise(evaluation=other)


def shown(figure: Figure) -> str:
    """A figure as its cell of a table reads."""
    return f"{figure.value} {figure.note}"


def test_page_shows_every_number_of_the_summary():
    text = visible(page_of(summarise()))
    summary = summarise().to_json()
    latency, parameters, perplexity = (
        summary["latency"],
        summary["parameters"],
        summary["perplexity"],
    )
    expected = [count(parameters["dense"]), count(parameters["pruned"])]
    expected += [count(weights) for weights in parameters["block_weights"].values()]
    expected += [percent(parameters["block_ratio"]), str(share(summary["mean_retention"]))]
    expected += [shown(points(summary["mean_difference"])), shown(share(summary["mean_retention"]))]
    expected += [str(points(summary["mean_difference"])), str(ratio(perplexity["mean_ratio"]))]
    expected += [str(ratio(perplexity["worst"])), f"worst: {perplexity['worst']['domain']}"]
    for name, values in perplexity["domains"].items():
        bits = [decimal(values["bits_per_byte"][model], 3) for model in ("dense", "pruned")]
        measured = [count(values[key]) for key in ("windows", "tokens", "bytes")]
        row = [decimal(values["dense"]), decimal(values["pruned"]), shown(ratio(values["ratio"]))]
        expected.append(" ".join([name, *row, *bits, *measured]))
    for name, task in summary["tasks"].items():
        row = [name, *(shown(share(task[key])) for key in ("dense", "pruned"))]
        row += [shown(points(task["difference"]))]
        row += [shown(share(task[key])) for key in ("retention", "above_chance")]
        expected.append(" ".join([*row, percent(task["chance"])]))
        expected.append(f"{task['questions']} of {count(task['available'])} questions, seed 7")
        expected.append(f"shots: {task['shots']}; metric {task['metric']}; version 1.25")
        expected += [task["digest"], task["prompt"]]
    for model in ("dense", "pruned"):
        expected += [megabytes(summary["memory"][model][key]) for key in ("before", "peak")]
        expected += [megabytes(summary[key][model]) for key in ("bytes", "disk")]
        for ends in (("median",), ("low", "high"), ("min", "max")):
            for key in ("prefill", "decode"):
                expected.append(" to ".join(decimal(latency[model][key][end], 1) for end in ends))
            seconds = [1000 * latency[model]["first_token"][end] for end in ends]
            expected.append(" to ".join(decimal(value, 1) for value in seconds))
        expected.append(milliseconds(latency[model]["first_token"]["median"]))
    for values in latency["speedup"].values():
        extremes = f"{decimal(values['min'])} to {decimal(values['max'])}"
        expected.append(f"{shown(ratio(values, 'median'))} {extremes}")
    expected += [str(latency[key]) for key in ("threads", "prompt_tokens", "new_tokens", "repeats")]
    expected.append(f"multiples of {latency['width_multiple']}")
    expected += summary["lm_eval"]["command"].split()
    expected.append("acc_norm 65.0 % on the first 20 questions of piqa")
    for record in summary["rounds"]:
        health = record["health"]
        row = [record["round"], record["status"], percent(record["achieved_ratio"])]
        row += [f"target {percent(record['target']['ratio'])}", count(record["parameters"])]
        row += [times(record["mean_ratio"]), times(health["worst_ratio"]), health["worst_domain"]]
        row += [decimal(health["kl"], 3), percent(health["top1_agreement"])]
        row += [signed(health["repetition"]["rise"]), signed(health["entropy_drift"])]
        row += [decimal(health["norm_drift"], 3), f"layer {health['norm_layer']}"]
        expected.append(" ".join(row))
    expected.append(f"Knee: {summary['knee']}")
    for domain in DOCUMENTS["domains"].values():
        expected += [count(domain["documents"]), count(domain["characters"])]
        expected += [str(number) for number in domain["splits"].values()]
        expected += [*domain["licences"], *domain["sources"]]
        expected += [count(source["documents"]) for source in domain["sources"].values()]
        expected += [f"too short {domain['dropped']['too_short']}", "email 5, phone 2"]
        expected.append(f"near duplicate {domain['dropped']['near_duplicate']}")
    for domain, measured in CALIBRATION["mixture"]["measured"].items():
        expected += [percent(measured), count(128 * CALIBRATION["mixture"]["counts"][domain])]
    digests = dict(summary["digests"])
    reports = digests.pop("reports")
    expected += [f"reports: {name} {digest}" for name, digest in reports.items()]
    expected += [*digests.values(), *summary["versions"].values()]
    normal = " ".join(text.split())
    absent = [item for item in expected if " ".join(item.split()) not in normal]
    assert absent == []


def test_page_is_self_contained_and_small():
    page = the_page()
    assert len(page.encode()) < 1_500_000
    own = page.replace(library(), "")
    assert len(own) < len(page)
    assert not re.search(r"https?://|@import|<script src|<link(?! rel=\"icon\" href=\"data:)", own)
    assert not re.findall(r"url\((?!#)[^)]*\)", own)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", own)


def test_every_chart_has_a_text_alternative():
    summary = summarise(evaluation={**PRUNED, "model": {**PRUNED["model"], "recovery": RECOVERY}})
    page = page_of(summary)
    labels = dict(
        re.findall(r'id="chart-(\w+)" role="img" aria-label="([^"]+)"', page),
    )
    specs = charts_of(page)
    assert set(labels) == set(specs)
    assert len(specs) == 9
    assert "code \u00d7\u202f1.72 (1." in labels["ratio"]
    assert "code 4.61 and 7.93" in labels["perplexity"]
    assert "piqa 93.4\u202f% (8" in labels["retention"]
    assert "r1 knee at 7.0" in labels["rounds"]
    assert "r3 KL, nats 0.324 of at most 2.00" in labels["health"]
    assert "r3 1\u202f056 neurons per layer" in labels["removed"]
    assert "lowest 0.03 (dialogue with technical) and highest 0.50" in labels["agreement"]
    assert labels["recovery"].endswith("step 0 0.6100, step 50 0.4400, step 100 0.4020")
    assert "decode \u00d7\u202f1.19 (1.15" in labels["speedup"]


def test_charts_take_their_colours_from_the_page():
    colours = set(re.findall(r"#[0-9a-fA-F]{3,8}|var\(--\w+\)", json.dumps(charts_of(the_page()))))
    assert {"var(--accent)", "var(--ink)"} <= colours
    assert all(colour.startswith("var") for colour in colours)


def test_an_interval_that_would_hide_the_others_is_cut_off_and_told_in_full():
    tasks = changed(
        summarise(), lambda values: values["tasks"]["siqa"]["retention"].update(high=5.0)
    ).tasks
    drawn = retention_chart(tasks).spec["layer"][1]["data"]["values"]
    piqa, siqa = drawn
    assert siqa["high"] == WIDEST and "500.0" in siqa["kept"]
    assert piqa["high"] == pytest.approx(100 * tasks["piqa"].retention["high"])


def test_page_shows_what_was_removed_of_every_layer_and_kind():
    cells = charts_of(the_page())["removed"]["data"]["values"]
    assert len(cells) == 3 * 3 * 30
    last = [cell for cell in cells if cell["row"] == "neurons, r3"]
    assert {cell["left"] for cell in last} == {"1056 of 1536 neurons"}
    assert last[0]["share"] == pytest.approx(100 * 480 / 1536)
    assert {cell["share"] for cell in cells if "KV" in cell["row"]} == {0}


def test_page_shows_how_domains_agree():
    text = visible(the_page())
    rho = [1 / (2 + number) for number in range(7)]  # encyclopaedia with each of the others
    assert f"encyclopaedia {decimal(sum(rho) / 7)} 0.25 0.75 40" in text
    assert "encyclopaedia \u2013 0.50 0.33 0.25" in text
    assert "Agreement of domains" not in visible(page_of(disagreement=None))


def test_page_shows_both_models_answers():
    text = visible(the_page())
    assert "Once upon a time \u2026 , there was a fox , a <fox> ran" in text


def test_page_shows_the_recovery_only_where_there_was_one():
    assert "Recovery" not in visible(the_page()).replace("recovery:", "")
    model = {**PRUNED["model"], "recovery": RECOVERY}
    text = visible(page_of(summarise(evaluation={**PRUNED, "model": model})))
    assert "120 steps and 491 520 tokens." in text.replace("\u202f", " ")
    assert "from 0.610 to 0.402 nats per token, at step 100" in text


def test_page_says_how_to_make_it_again():
    text = visible(the_page())
    for words in ("dvc repro", "pruneflow run", "score: mask_fisher", "final_round: r3"):
        assert words in text
    assert "webhook" not in text and "tracking_uri" not in text
    (profile,) = re.findall(r'<pre id="settings">(.*?)</pre>', the_page(), re.DOTALL)
    again = parse_settings(yaml.safe_load(unescape(profile)), Path("again.yaml"))
    assert again.digest() == SETTINGS.digest()


def test_page_is_the_same_every_time():
    assert page_of() == the_page()


def test_page_escapes_names():
    evil = "<script>alert(1)</script>"
    documents = copy.deepcopy(DOCUMENTS)
    documents["domains"]["news"]["licences"] = [evil]

    def rename(values: dict[str, Any]) -> None:
        values["model"]["name"] = values["reload"]["text"] = evil
        domains = values["perplexity"]["domains"]
        domains[evil] = domains.pop("law")

    page = page_of(changed(summarise(), rename), documents=documents)
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert evil in json.dumps(charts_of(page))


def test_card_has_hub_metadata_and_the_comparison():
    import yaml

    summary = summarise()
    card = render_card(summary, SETTINGS.model)
    _, header, body = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["base_model"] == "SmolLM2-135M-Instruct"
    assert "pruned" in metadata["tags"]
    assert "license" not in metadata
    (results,) = metadata["model-index"]
    measured = [
        (each["dataset"]["type"], each["metrics"][0]["value"])
        for each in results["results"]
        if each["metrics"][0]["type"] == "accuracy"
    ]
    assert measured == [("piqa", 0.635), ("siqa", 0.47)]
    for rows in comparison(summary).values():
        for row in rows:
            assert f"| {row.measure} | {row.dense} | {row.pruned} | {row.change} |" in body


def test_card_names_a_hub_id_as_base_model():
    import yaml

    source = {"source": "HuggingFaceTB/SmolLM2-135M", "revision": "abc123"}
    model = SETTINGS.model.model_copy(update=source)
    header = render_card(summarise(), model).split("---\n", 2)[1]
    assert yaml.safe_load(header)["base_model"] == "HuggingFaceTB/SmolLM2-135M"


def printed(summary: Summary, width: int) -> str:
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    console.print(result_table(summary))
    return console.export_text()


def test_table_shows_the_comparison_and_no_markup_of_names():
    summary = changed(summarise(), lambda values: values["model"].update(name="a[red]b"))
    text = printed(summary, 140)
    assert "a[red]b" in text
    for rows in comparison(summary).values():
        for row in rows:
            assert all(cell in text for cell in row)


def test_no_row_of_the_table_is_broken_on_80_columns():
    summary = changed(
        summarise(),
        lambda values: values["tasks"].update(commonsenseqa=values["tasks"].pop("siqa")),
    )
    lines = printed(summary, 80).splitlines()
    assert max(map(len, lines)) <= 80
    for rows in comparison(summary).values():
        for row in rows:
            assert any(all(cell in line for cell in row) for line in lines), row


def test_page_shows_what_was_checked_and_how_rounds_weighed_domains():
    page = the_page()
    text = visible(page)
    assert "All passed (expectations: 2, other checks: 1)." in text
    (folded,) = re.findall(r"<details><summary>What was checked.*?</details>", page, re.DOTALL)
    assert "expect column values to be unique" in folded
    assert "no near duplicates" in folded
    assert "element count 5\u202f360; unexpected count 0" in folded
    weighed = text[text.index("Domain weights by round") :]
    assert "1.07 (22)" in weighed and "1.20 (42)" in weighed
    assert "Not all passed" in visible(page_of(validation={**VALIDATION, "success": False}))


def test_page_has_no_weights_where_no_round_ran():
    skipped = [{**record, "sequences": {}, "weights": {}} for record in ROUNDS]
    assert "Domain weights by round" not in page_of(rounds=skipped)
