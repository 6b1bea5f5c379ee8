"""Two small records as the stages baseline and evaluation write them, and a summary of numbers."""

import copy
import math
from typing import Any

import numpy as np

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


def record(digest: str = "a", rise: float = 0.0, drop: float = 0.0, kept: float = 1.0) -> dict:
    """The record of a model whose losses rose, whose accuracy dropped and of which some is left."""
    generator = np.random.default_rng(7)
    text = {name: generator.lognormal(1.0, 0.2, 9) for name in ("code", "news")}
    return {
        "model": {
            "digest": digest * 64,
            "delivered_digest": digest * 64,
            "recovery": None,
            "bytes": round(280_000 * kept),
            "parameters": round(140_000 * kept),
            "block_weights": round(100_000 * kept),
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


def _task(chance: float, *figures: dict[str, float | None] | None) -> dict[str, Any]:
    dense, pruned, difference, retention, above = figures
    return {
        "chance": chance,
        "questions": 200,
        "measurable": retention is not None,
        "dense": dense,
        "pruned": pruned,
        "difference": difference,
        "retention": retention,
        "above_chance": above,
    }


_SUMMARY = {
    "perplexity": {
        "domains": {
            "code": {"ratio": about(1.8, 1.7, 1.9)},
            "news": {"ratio": about(1.2, 1.1, 1.25)},
        },
        "mean_ratio": about(1.47, 1.41, 1.53),
        "worst": {"domain": "code", **about(1.8, 1.7, 1.9)},
    },
    "tasks": {
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
    },
    "mean_retention": about(0.96, 0.91, 1.02),
    "mean_difference": about(-0.025, -0.055, 0.005),
    "parameters": {"block_ratio": 0.2},
    "bytes": {"dense": 270, "pruned": 216, "ratio": 0.8},
    "reload": {"ok": True},
    "lm_eval": {"ok": True},
    "latency": {
        "speedup": {
            "decode": {"median": 1.19, "low": 1.1, "high": 1.25, "min": 1.0, "max": 1.3},
            "prefill": {"median": 1.21, "low": 1.15, "high": 1.3, "min": 1.1, "max": 1.4},
        }
    },
    "calibration_domains": {"code": 12, "news": 9, "law": 3},
    "digests": {"dense": "d" * 64, "pruned": "a" * 64, "reports": {"baseline": "e" * 64}},
}


def summary(**changes: Any) -> dict[str, Any]:
    """What gates read of a summary, in numbers that are easy to look through."""
    return {**copy.deepcopy(_SUMMARY), **changes}
