"""Two small evaluations as the stages baseline and evaluation write them, and a made-up summary."""

import math
from typing import Any

import numpy as np

from pruneflow.judge.gates import GatesSettings
from pruneflow.judge.summary import Summary
from pruneflow.measure.evaluation_record import Evaluation
from tests.unit import report_example

TASKS = {"piqa": (0.5, 200), "siqa": (1 / 3, 200), "boolq": (0.62, 40)}
SCORED = 255
"""Tokens of a window that have a loss."""


def about(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def scored(windows: Any, per_window: int = SCORED) -> dict[str, Any]:
    """A domain's losses, from the mean loss of a token of each window."""
    losses = [float(loss) * per_window for loss in windows]
    nll, tokens = math.fsum(losses), per_window * len(losses)
    return {
        "nll": nll,
        "tokens": tokens,
        "perplexity": math.exp(nll / tokens),
        "windows": losses,
        "bytes": 4 * tokens,
        "bits_per_byte": nll / (4 * tokens * math.log(2)),
    }


def right(share: float, seed: int, of: int) -> list[int]:
    """Which of some questions are answered right: with the same seed, the easiest ones."""
    return (np.random.default_rng(seed).random(of) < share).astype(int).tolist()


def record(
    digest: str = "a", rise: float = 0.0, drop: float = 0.0, kept: float = 1.0, **changes: Any
) -> Evaluation:
    """The evaluation of a model with higher losses, lower accuracy and fewer weights."""
    generator = np.random.default_rng(7)
    text = {name: generator.lognormal(1.0, 0.2, 9) for name in ("code", "news")}
    values = {
        "model": {
            "digest": digest * 64,
            "delivered_digest": digest * 64,
            "recovery": None,
            "bytes": round(280_000 * kept),
            "parameters": round(140_000 * kept),
            "block_weights": round(100_000 * kept),
            "widths": {"neurons": [8, 8], "kv_groups": [1, 1], "heads": [2, 2]},
        },
        "perplexity": {
            name: scored(losses + rise * generator.lognormal(0, 0.2, 9))
            for name, losses in text.items()
        },
        "tasks": {
            name: {
                "acc": 0.5,
                "acc_norm": 0.5,
                "metric": "acc_norm",
                "chance": chance,
                "questions": asked,
                "available": 2 * asked,
                "seed": 0,
                "template": "{{question}}",
                "prompt": "Why?",
                "correct": right(chance + 0.25 - drop, number, asked),
                "output_type": "multiple_choice",
                "shots": 4,
                "version": 1.0,
                "digest": str(number) * 64,
            }
            for number, (name, (chance, asked)) in enumerate(TASKS.items())
        },
        "tokenizer": "b" * 64,
        "held_out": "c" * 64,
        "questions": "d" * 64,
        "dtype": "bfloat16",
    }
    return Evaluation.model_validate({**values, **changes})


def _task(chance: float, *figures: dict[str, float | None] | None) -> dict[str, Any]:
    dense, pruned, difference, retention, above = figures
    return {
        "metric": "acc_norm",
        "chance": chance,
        "questions": 200,
        "available": 400,
        "seed": 0,
        "output_type": "multiple_choice",
        "shots": 4,
        "version": 1.0,
        "template": "{{question}}",
        "prompt": "Why?",
        "digest": "9" * 64,
        "measurable": retention is not None,
        "dense": dense,
        "pruned": pruned,
        "difference": difference,
        "retention": retention,
        "above_chance": above,
    }


def spread(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high, "min": low - 0.1, "max": high + 0.1}


def domain(ratio: dict[str, float | None]) -> dict[str, Any]:
    return {
        "dense": 10.0,
        "pruned": 10.0 * (ratio["value"] or 0),
        "ratio": ratio,
        "tokens": 2295,
        "windows": 9,
        "bytes": 9180,
        "bits_per_byte": {"dense": 0.83, "pruned": 0.99},
    }


PERPLEXITY = {
    "domains": {"code": domain(about(1.8, 1.7, 1.9)), "news": domain(about(1.2, 1.1, 1.25))},
    "mean_ratio": about(1.47, 1.41, 1.53),
    "worst": {"domain": "code", **about(1.8, 1.7, 1.9)},
}
TASK_FIGURES = {
    "piqa": _task(
        0.5,
        about(0.64, 0.57, 0.71),
        about(0.6, 0.53, 0.67),
        about(-0.04, -0.08, 0.01),
        about(0.9375, 0.88, 1.01),
        about(0.71, 0.4, 1.1),
    ),
    "siqa": _task(
        1 / 3,
        about(0.43, 0.36, 0.5),
        about(0.42, 0.35, 0.49),
        about(-0.01, -0.05, 0.03),
        about(0.98, 0.89, 1.08),
        about(0.9, 0.5, 1.4),
    ),
    "medqa": _task(
        0.25, about(0.3, 0.18, 0.42), about(0.2, 0.1, 0.32), about(-0.1, -0.2, 0), None, None
    ),
}
_BASE = report_example.summarise().to_json()
SPEEDUP = {
    "prefill": spread(1.21, 1.15, 1.3),
    "decode": spread(1.19, 1.1, 1.25),
    "first_token": spread(1.2, 1.1, 1.3),
}
RELOAD, LM_EVAL = _BASE["reload"], _BASE["lm_eval"]
_SUMMARY = {
    **_BASE,
    "perplexity": PERPLEXITY,
    "tasks": TASK_FIGURES,
    "mean_retention": about(0.96, 0.91, 1.02),
    "mean_difference": about(-0.025, -0.055, 0.005),
    "parameters": {
        "dense": 135,
        "pruned": 114,
        "ratio": 0.16,
        "block_weights": {"dense": 100, "pruned": 80},
        "block_ratio": 0.2,
    },
    "bytes": {"dense": 270, "pruned": 216, "ratio": 0.8},
    "latency": {**_BASE["latency"], "speedup": SPEEDUP},
    "calibration_domains": {"code": 12, "news": 9, "law": 3},
    "digests": {**_BASE["digests"], "pruned": "a" * 64},
}


def summary(**changes: Any) -> Summary:
    """A summary with numbers that are easy to follow."""
    return Summary.model_validate({**_SUMMARY, **changes})


def gates(
    metric: str, comparison: str, limit: float, run_mode: str = "enabled", **more: str
) -> GatesSettings:
    """One gate."""
    entry = {"metric": metric, "comparison": comparison, "limit": limit, "why": "It matters."}
    return GatesSettings.model_validate({"run_mode": run_mode, "gates": [{**entry, **more}]})
