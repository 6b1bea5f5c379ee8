"""The machine-readable result: everything that reports, gates and the registry read."""

import platform
from importlib import metadata
from typing import Any

from pruneflow.artifacts import sha256_json
from pruneflow.config import PipelineSettings
from pruneflow.errors import InputError
from pruneflow.evaluation.retention import (
    geometric_mean,
    perplexity_ratios,
    retention,
    worst_ratio,
)

PACKAGES = {
    "pruneflow": "pruneflow",
    "torch": "torch",
    "transformers": "transformers",
    "lm_eval": "lm-eval",
}
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
    _check_together(baseline, evaluation, rounds)
    tasks = _tasks(baseline, evaluation, settings)
    return {
        "model": {
            "name": settings.model.name,
            "source": settings.model.source,
            "revision": settings.model.revision,
            "delivered": rounds[-1]["delivered"],
            "target": rounds[-1]["target"],
            "layout": settings.pruning.layout,
            "score": settings.pruning.score,
            "refit": settings.pruning.refit,
        },
        "parameters": _parameters(baseline["model"], evaluation["model"]),
        "perplexity": _perplexity(baseline["perplexity"], evaluation["perplexity"]),
        "tasks": tasks,
        "mean_retention": _mean([task["retention"] for task in tasks.values()]),
        "latency": {
            key: value for key, value in latency.items() if key not in ("bytes", "memory", "reload")
        },
        "memory": latency["memory"],
        "bytes": {
            "dense": baseline["model"]["bytes"],
            "pruned": evaluation["model"]["bytes"],
            "ratio": evaluation["model"]["bytes"] / baseline["model"]["bytes"],
        },
        "reload": latency["reload"],
        "rounds": [_round(record) for record in rounds],
        "digests": {
            "dense": baseline["model"]["digest"],
            "pruned": evaluation["model"]["digest"],
            "calibration_set": calibration["digest"],
            "documents": documents["digest"],
            "held_out": baseline["held_out"],
            "benchmarks": baseline["benchmarks"],
            "settings": sha256_json(settings.model_dump(mode="json", exclude={"registry"})),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(package) for name, package in PACKAGES.items()},
        },
    }


def verdict(summary: dict[str, Any]) -> str:
    """Say in one sentence what was gained and what it cost."""
    perplexity, parameters = summary["perplexity"], summary["parameters"]
    kept = ", ".join(
        f"{task['retention']:.0%} of {name.upper()} accuracy"
        for name, task in summary["tasks"].items()
        if task["retention"] is not None
    )
    return (
        f"With {parameters['block_ratio']:.1%} of the block weights of "
        f"{summary['model']['name']} removed, perplexity is {perplexity['mean_ratio']:.2f} times "
        f"the dense model's (at worst {perplexity['worst']['ratio']:.2f}, on "
        f"{perplexity['worst']['domain']}), it keeps {kept or 'no measurable accuracy'}, and it "
        f"decodes {summary['latency']['speedup']['decode']['median']:.2f} times as fast."
    )


def _check_together(
    baseline: dict[str, Any], evaluation: dict[str, Any], rounds: list[dict[str, Any]]
) -> None:
    for key in ("held_out", "benchmarks", "dtype"):
        if baseline[key] != evaluation[key]:
            raise InputError(
                f"baseline and evaluation differ in {key} ({baseline[key]} and "
                f"{evaluation[key]}), so they cannot be compared: run `dvc repro` again"
            )
    if not rounds:
        raise InputError("there is no round to report: name some under rounds")
    if rounds[-1]["delivered_digest"] != evaluation["model"]["delivered_digest"]:
        raise InputError(
            f"the evaluated model is not the one that round {rounds[-1]['delivered']} left: "
            "run `dvc repro` again"
        )


def _parameters(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    return {
        "dense": dense["parameters"],
        "pruned": pruned["parameters"],
        "ratio": 1 - pruned["parameters"] / dense["parameters"],
        "block_weights": {"dense": dense["block_weights"], "pruned": pruned["block_weights"]},
        "block_ratio": 1 - pruned["block_weights"] / dense["block_weights"],
    }


def _perplexity(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, Any]:
    ratios = perplexity_ratios(dense, pruned)
    worst, ratio = worst_ratio(ratios)
    return {
        "domains": {
            domain: {
                "dense": dense[domain]["perplexity"],
                "pruned": pruned[domain]["perplexity"],
                "ratio": ratios[domain],
                "tokens": dense[domain]["tokens"],
            }
            for domain in ratios
        },
        "mean_ratio": geometric_mean(ratios),
        "worst": {"domain": worst, "ratio": ratio},
    }


def _tasks(
    baseline: dict[str, Any], evaluation: dict[str, Any], settings: PipelineSettings
) -> dict[str, Any]:
    tasks = {}
    for name, dense in baseline["tasks"].items():
        pruned = evaluation["tasks"][name]
        tasks[name] = {
            "metric": dense["metric"],
            "chance": dense["chance"],
            "questions": dense["questions"],
            **retention(
                dense["correct"],
                pruned["correct"],
                samples=settings.evaluation.bootstrap_samples,
                seed=settings.evaluation.seed,
            ),
        }
    return tasks


def _mean(values: list[float | None]) -> float | None:
    """Return the mean, or None when one of the values was not measurable."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


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
