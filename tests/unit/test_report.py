"""The summary puts measurements side by side; page, card and table show all of it."""

import copy
import json
import math
import re
from typing import Any

import pytest
from report_example import (
    BASELINE,
    CALIBRATION,
    DOCUMENTS,
    HELD_OUT,
    LATENCY,
    PERPLEXITY,
    PRUNED,
    ROUNDS,
    VALIDATION,
    page_of,
    summarise,
    visible,
)

from pruneflow.errors import InputError
from pruneflow.evaluation.gates import GatesSettings, decide
from pruneflow.reporting.comparison import comparison
from pruneflow.reporting.data_card import render_data_card
from pruneflow.reporting.model_card import render_card
from pruneflow.reporting.numbers import count, decimal, megabytes, milliseconds, percent, times
from pruneflow.reporting.page import render_page
from pruneflow.reporting.summary import verdict
from pruneflow.reporting.table import result_table


def test_summary_measures_ratios_by_hand():
    summary = summarise()
    parameters = summary["parameters"]
    assert parameters["block_ratio"] == pytest.approx(1 - 84_580_000 / 106_168_320)
    assert parameters["ratio"] == pytest.approx(1 - 112_926_000 / 134_515_008)
    assert summary["perplexity"]["domains"]["code"]["ratio"] == pytest.approx(7.93 / 4.61)
    assert summary["perplexity"]["worst"] == {
        "domain": "code",
        "ratio": pytest.approx(7.93 / 4.61),
    }
    product = math.prod(pruned / dense for dense, pruned in PERPLEXITY.values())
    assert summary["perplexity"]["mean_ratio"] == pytest.approx(product ** (1 / 8))
    assert summary["tasks"]["piqa"]["retention"] == pytest.approx(127 / 136)
    assert summary["mean_retention"] == pytest.approx((127 / 136 + 94 / 99) / 2)
    assert summary["rounds"][0]["mean_ratio"] == pytest.approx((1.09**7 * 1.153) ** (1 / 8))
    assert summary["model"]["delivered"] == "r3"
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("key", ["held_out", "benchmarks", "dtype"])
def test_summary_refuses_evaluations_that_cannot_be_compared(key):
    with pytest.raises(InputError, match=f"differ in {key}"):
        summarise(evaluation={**PRUNED, key: "other"})


def test_summary_refuses_the_evaluation_of_another_model():
    other = {**PRUNED, "model": {**PRUNED["model"], "delivered_digest": "9" * 64}}
    with pytest.raises(InputError, match="not the one that round r3 left"):
        summarise(evaluation=other)


def test_summary_and_page_survive_a_descent_that_ended_early():
    skipped = {
        "round": "r3",
        "status": "skipped",
        "delivered": "r2",
        "delivered_digest": "2" * 64,
        "parent": "r2",
        "target": {"ratio": 0.2},
        "digest": "2" * 64,
    }
    delivered = {
        **PRUNED,
        "model": {**PRUNED["model"], "digest": "2" * 64, "delivered_digest": "2" * 64},
    }
    rounds = [*ROUNDS[:2], skipped]
    summary = summarise(rounds=rounds, evaluation=delivered)
    assert summary["model"]["delivered"] == "r2"
    assert summary["rounds"][2]["mean_ratio"] is None
    assert "skipped" in visible(page_of(summary, rounds))


def test_page_shows_every_number_of_the_summary():
    summary = summarise()
    text = visible(page_of(summary))
    latency, parameters, perplexity = (
        summary["latency"],
        summary["parameters"],
        summary["perplexity"],
    )
    expected = [count(parameters["dense"]), count(parameters["pruned"])]
    expected += [count(weights) for weights in parameters["block_weights"].values()]
    expected += [percent(parameters["block_ratio"]), percent(summary["mean_retention"])]
    expected += [times(perplexity["mean_ratio"]), times(perplexity["worst"]["ratio"])]
    for values in perplexity["domains"].values():
        expected += [decimal(values["dense"]), decimal(values["pruned"]), times(values["ratio"])]
        expected.append(count(values["tokens"]))
    for task in summary["tasks"].values():
        expected += [percent(task[key]) for key in ("dense", "pruned", "retention", "low", "high")]
        expected += [percent(task["chance"]), count(task["questions"])]
    for model in ("dense", "pruned"):
        expected += [megabytes(summary["memory"][model][key]) for key in ("before", "peak")]
        expected.append(megabytes(summary["bytes"][model]))
        for kind in ("median", "min", "max"):
            expected += [decimal(latency[model][key][kind], 1) for key in ("prefill", "decode")]
            expected.append(milliseconds(latency[model]["first_token"][kind]))
    for values in latency["speedup"].values():
        expected += [times(values["median"]), decimal(values["min"]), decimal(values["max"])]
    expected += [str(latency[key]) for key in ("threads", "prompt_tokens", "new_tokens", "repeats")]
    for record in summary["rounds"]:
        expected += [percent(record["target"]["ratio"]), percent(record["achieved_ratio"])]
        expected += [count(record["parameters"]), times(record["mean_ratio"])]
        expected.append(times(record["health"]["worst_ratio"]))
    for domain in DOCUMENTS["domains"].values():
        expected += [count(domain["documents"]), count(domain["characters"])]
        expected += [str(number) for number in domain["splits"].values()]
        expected += [*domain["licences"], *domain["sources"]]
        expected += [count(source["documents"]) for source in domain["sources"].values()]
        expected += [f"too short {domain['dropped']['too_short']}", "email 5, phone 2"]
        expected.append(f"near duplicate {domain['dropped']['near_duplicate']}")
    for domain, share in CALIBRATION["mixture"]["measured"].items():
        expected += [percent(share), count(128 * CALIBRATION["mixture"]["counts"][domain])]
    expected += [*summary["digests"].values(), *summary["versions"].values()]
    normal = " ".join(text.split())
    absent = [item for item in expected if " ".join(item.split()) not in normal]
    assert absent == []


def test_page_is_self_contained():
    page = page_of()
    assert not re.search(r"https?://|@import|<script|<link(?! rel=\"icon\" href=\"data:)", page)
    assert not re.findall(r"url\((?!#)[^)]*\)", page)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", page)


def test_charts_have_text_alternatives_and_ids_of_their_own():
    page = page_of()
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(labels) == page.count("<svg") == 4
    assert "code \u00d7\u202f1.72" in labels[0]
    assert "r3 1056 neurons a layer" in labels[3]
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        own = set(re.findall(r' id="([pm][0-9a-f]{8,})"', svg))
        assert own, "no generated ids: the check below would be void"
        assert all(page.count(f'id="{name}"') == 1 for name in own)
        assert "#01020" not in svg


def test_page_is_the_same_every_time():
    assert page_of() == page_of()


def test_a_task_the_dense_model_cannot_do_is_shown_and_fails_its_gate():
    baseline = copy.deepcopy(BASELINE)
    baseline["tasks"]["siqa"]["correct"] = [0] * 200
    summary = summarise(baseline=baseline)
    assert summary["mean_retention"] is None
    assert "SIQA" not in verdict(summary)
    assert "not measurable" in page_of(summary)
    for metric in ("task_retention.siqa", "mean_retention"):
        gate = {"metric": metric, "comparison": "at_least", "limit": 0.1, "why": "It must know."}
        decision = decide(summary, GatesSettings(run_mode="enabled", gates=[gate]))
        assert not decision["accepted"] and "was not measured" in decision["reasons"][0]


def test_page_escapes_names():
    evil = "<script>alert(1)</script>"
    summary, documents = summarise(), copy.deepcopy(DOCUMENTS)
    summary["model"]["name"] = evil
    summary["reload"]["text"] = evil
    domains = summary["perplexity"]["domains"]
    domains[evil] = domains.pop("law")
    documents["domains"]["news"]["licences"] = [evil]
    page = page_of(summary, documents=documents)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_page_says_when_the_model_does_not_reload():
    reload = {"ok": False, "text": None, "reason": "missing keys: lm_head.weight"}
    memory = {"dense": LATENCY["memory"]["dense"], "pruned": None}
    summary = summarise(latency={**LATENCY, "reload": reload, "memory": memory})
    text = visible(page_of(summary))
    assert "Does not reload" in text
    assert "missing keys: lm_head.weight" in text


def test_card_has_hub_metadata_and_the_comparison():
    import yaml

    summary = summarise()
    card = render_card(summary)
    _, header, body = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["base_model"] == "SmolLM2-135M-Instruct"
    assert "pruned" in metadata["tags"]
    assert "license" not in metadata
    for rows in comparison(summary).values():
        for row in rows:
            assert f"| {row.measure} | {row.dense} | {row.pruned} | {row.change} |" in body


def test_card_names_a_hub_id_as_base_model():
    import yaml

    summary = summarise()
    summary["model"].update(source="HuggingFaceTB/SmolLM2-135M", revision="abc123")
    header = render_card(summary).split("---\n", 2)[1]
    assert yaml.safe_load(header)["base_model"] == "HuggingFaceTB/SmolLM2-135M"


def test_table_shows_the_comparison_and_no_markup_of_names():
    from rich.console import Console

    summary = summarise()
    summary["model"]["name"] = "a[red]b"
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(result_table(summary))
    text = console.export_text()
    assert "a[red]b" in text
    for rows in comparison(summary).values():
        for row in rows:
            assert all(cell in text for cell in row)


def test_page_shows_what_was_checked_and_how_rounds_weighed_domains():
    page = page_of()
    text = visible(page)
    assert "All hold (expectations: 2, other checks: 1)." in text
    (folded,) = re.findall(r"<details><summary>What was checked.*?</details>", page, re.DOTALL)
    assert "expect column values to be unique" in folded
    assert "no near duplicates" in folded
    assert "element count 5\u202f360; unexpected count 0" in folded
    weighed = text[text.index("Domain weights by round") :]
    assert "1.07 (22)" in weighed and "1.20 (42)" in weighed
    assert "Not all hold" in visible(
        render_page(summarise(), ROUNDS, DOCUMENTS, CALIBRATION, {**VALIDATION, "success": False})
    )


def test_page_has_no_weights_where_no_round_ran():
    skipped = [{**record, "sequences": None, "weights": None} for record in ROUNDS]
    assert "Domain weights by round" not in page_of(rounds=skipped)


def data_card(documents: dict[str, Any] = DOCUMENTS) -> tuple[dict[str, Any], str]:
    import yaml

    card = render_data_card(documents, CALIBRATION, HELD_OUT, VALIDATION)
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_data_card_has_hub_metadata():
    metadata, _ = data_card()
    assert metadata["license"] == "other"
    assert metadata["license_details"] == "CC-BY-SA-3.0, LicenseRef-ours"
    assert metadata["language"] == ["en"]
    assert metadata["size_categories"] == ["1K<n<10K"]
    documents = copy.deepcopy(DOCUMENTS)
    for domain in documents["domains"].values():
        domain.update(licences=["CC-BY-SA-3.0"], languages={"zh-Hans": 3, "fr": 5, "zxx": 9})
        domain["documents"] = 17
    metadata, _ = data_card(documents)
    assert metadata["license"] == "cc-by-sa-3.0"
    assert metadata["language"] == ["fr", "zh"]
    assert metadata["multilinguality"] == ["multilingual"]
    assert metadata["size_categories"] == ["n<1K"]


def test_data_card_shows_every_source_drop_mask_check_and_digest():
    _, body = data_card()
    plain = body.replace("\u202f", " ").replace("\u00a0", " ")
    for name, domain in DOCUMENTS["domains"].items():
        assert f"too short 12, near duplicate {domain['dropped']['near_duplicate']}" in plain
        for source in domain["sources"].values():
            assert re.search(rf"^\| {name} \|.* {source['licence']} \|", plain, re.MULTILINE)
    assert "| **all** | near duplicate 276, too short 96 | email 40, phone 16 |" in plain
    assert "| law | 690 | 817 345 | 1 664 | 13.4 % | 12.5 % | 3 072 |" in plain
    assert "All hold (expectations: 2, other checks: 1):" in plain
    assert "| no near duplicates | documents | rows at fault 0 |" in plain
    for digest in ("e" * 64, "f" * 64, "c" * 64, "9" * 40):
        assert f"`{digest}`" in plain
    tables = re.findall(r"(?:^\|.*\n)+", plain, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, "a cell breaks its row"


@pytest.mark.parametrize(
    ("choice", "words"), [("mask", "are masked"), ("drop", "were dropped"), ("keep", "not looked")]
)
def test_data_card_says_what_became_of_personal_data(choice, words):
    documents = {**DOCUMENTS, "settings": {**DOCUMENTS["settings"], "personal_data": choice}}
    _, body = data_card(documents)
    section = body.split("## Personal and sensitive information")[1].split("##")[0]
    assert words in section
