"""The machine-readable result: everything that reports, gates and the registry read."""

import math
import platform
from importlib import metadata
from typing import Any

from pruneflow.artifacts import sha256_json
from pruneflow.errors import InputError
from pruneflow.judge.compare import compare
from pruneflow.judge.health import knee
from pruneflow.judge.retention import geometric_mean, perplexity_ratios
from pruneflow.settings.pipeline import PipelineSettings

PACKAGES = {
    "pruneflow": "pruneflow",
    "torch": "torch",
    "transformers": "transformers",
    "lm_eval": "lm-eval",
}
_NOT_SPEED = ("bytes", "memory", "reload", "answers", "lm_eval", "warnings")
ROUND_KEYS = (
    "round",
    "status",
    "delivered",
    "parent",
    "target",
    "achieved_ratio",
    "digest",
    "parameters",
    "block_weights",
    "health",
)


def build_summary(
    baseline: dict[str, Any],
    evaluation: dict[str, Any],
    latency: dict[str, Any],
    rounds: list[dict[str, Any]],
    settings: PipelineSettings,
    calibration: dict[str, Any],
    documents: dict[str, Any],
) -> dict[str, Any]:
    """Put the pruned model's measurements beside the dense model's.

    Args:
        baseline: evaluation of the dense model (data/reports/baseline.json).
        evaluation: evaluation of the pruned model (data/reports/evaluation.json).
        latency: speed, memory and reload proof (data/reports/latency.json).
        rounds: the round.json of every round, in order.
        settings: the pipeline's settings.
        calibration: manifest of the calibration set.
        documents: manifest of the documents.

    Raises:
        InputError: the measurements do not belong together (another test set, another model).
    """
    compared = compare(baseline, evaluation, settings.evaluation)
    _check_rounds(evaluation, rounds)
    described = [_round(record) for record in rounds]
    return {
        "model": {
            "name": settings.model.name,
            "source": settings.model.source,
            "revision": settings.model.revision,
            "delivered": rounds[-1]["delivered"],
            "planned": rounds[-1]["round"],
            "target": rounds[-1]["target"],
            "layout": settings.pruning.layout,
            "score": settings.pruning.score,
            "refit": settings.pruning.refit,
        },
        **compared,
        "latency": {key: value for key, value in latency.items() if key not in _NOT_SPEED},
        "memory": latency["memory"],
        "disk": {model: kept["total"] for model, kept in latency["bytes"].items()},
        "reload": latency["reload"],
        "answers": latency["answers"],
        "lm_eval": {key: value for key, value in latency["lm_eval"].items() if key != "correct"},
        "warnings": latency["warnings"],
        "calibration_domains": calibration["mixture"]["counts"],
        "rounds": described,
        "knee": _knee(described),
        "recovery": evaluation["model"]["recovery"],
        "digests": {
            "dense": baseline["model"]["digest"],
            "pruned": evaluation["model"]["digest"],
            "calibration_set": calibration["digest"],
            "documents": documents["digest"],
            "held_out": baseline["held_out"],
            "questions": baseline["questions"],
            "tokenizer": baseline["tokenizer"],
            "reports": {
                "baseline": sha256_json(baseline),
                "evaluation": sha256_json(evaluation),
                "latency": sha256_json(latency),
            },
            "settings": settings.digest(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(package) for name, package in PACKAGES.items()},
        },
    }


def _check_rounds(evaluation: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    if not rounds:
        raise InputError("there is no round to report: name some under rounds")
    if rounds[-1]["delivered_digest"] != evaluation["model"]["delivered_digest"]:
        raise InputError(
            f"the evaluated model is not the one that round {rounds[-1]['delivered']} left: "
            "run `dvc repro` again"
        )


def _knee(rounds: list[dict[str, Any]]) -> str | None:
    """Name the round after which the descent gets steep; None where there is no such round."""
    done = [record for record in rounds if record["mean_ratio"] is not None]
    points = [(record["achieved_ratio"], math.log(record["mean_ratio"])) for record in done]
    place = knee(points)
    return None if place is None else str(done[place]["round"])


def _round(record: dict[str, Any]) -> dict[str, Any]:
    """Keep of a round's record what a report shows; a skipped round has no measurements."""
    result = {key: record.get(key) for key in ROUND_KEYS}
    validation = record.get("validation") or {}
    result["mean_ratio"] = None
    if validation.get("dense") and validation.get("pruned"):
        result["mean_ratio"] = geometric_mean(
            perplexity_ratios(validation["dense"], validation["pruned"])
        )
    return result
