"""The gates a pruned model must pass: each compares one number of the summary with a limit.

A new gate metric is one function below. A measurement that is missing or not finite is a
refusal, never a pass.
"""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pruneflow.artifacts import sha256_json
from pruneflow.schema import Settings, check, read_yaml

Summary = dict[str, Any]

METRICS: dict[str, Callable[..., float]] = {}


def metric(function: Callable[..., float]) -> Callable[..., float]:
    """Register a gate metric under its function's name.

    It takes the summary and, when it has a second parameter, what follows the dot in
    configs/gates.yaml: ``task_retention.piqa`` calls ``task_retention(summary, "piqa")``.
    """
    METRICS[function.__name__] = function
    return function


@metric
def perplexity_ratio_mean(summary: Summary) -> float:
    """Geometric mean over domains of pruned perplexity over dense perplexity."""
    return summary["perplexity"]["mean_ratio"]


@metric
def perplexity_ratio_worst(summary: Summary) -> float:
    """Perplexity ratio of the domain that suffered most."""
    return summary["perplexity"]["worst"]["ratio"]


@metric
def perplexity_ratio(summary: Summary, domain: str) -> float:
    """Perplexity ratio of one domain."""
    return summary["perplexity"]["domains"][domain]["ratio"]


@metric
def task_retention(summary: Summary, task: str) -> float:
    """Pruned accuracy over dense accuracy on one task."""
    return summary["tasks"][task]["retention"]


@metric
def mean_retention(summary: Summary) -> float:
    """Mean over tasks of pruned accuracy over dense accuracy."""
    return summary["mean_retention"]


@metric
def block_ratio(summary: Summary) -> float:
    """Share of the dense model's block weights that is gone."""
    return summary["parameters"]["block_ratio"]


@metric
def reload_ok(summary: Summary) -> float:
    """1 when a fresh process without this project loads the model and generates, else 0."""
    return float(summary["reload"]["ok"])


def _parts(name: str) -> list[str]:
    """Parameters of a registered metric beside the summary: none or one."""
    return list(inspect.signature(METRICS[name]).parameters)[1:]


def known_metrics() -> str:
    """List the metrics as configs/gates.yaml spells them, e.g. ``task_retention.TASK``."""
    return ", ".join(".".join([name, *(part.upper() for part in _parts(name))]) for name in METRICS)


class GateSettings(Settings):
    """One gate."""

    name: str | None = Field(None, description="What reports call it; the metric when absent.")
    metric: str = Field(description="A metric of pruneflow/evaluation/gates.py.")
    comparison: Literal["at_least", "at_most"] = Field(description="Side of the limit to be on.")
    limit: float = Field(description="The limit itself passes.")
    why: str = Field(min_length=1, description="One sentence for who reads a refusal.")

    @model_validator(mode="after")
    def _known(self) -> "GateSettings":
        name, dot, part = self.metric.partition(".")
        if name not in METRICS:
            raise ValueError(f"unknown metric {self.metric}: choose one of {known_metrics()}")
        if bool(dot and part) != bool(_parts(name)):
            raise ValueError(f"metric {self.metric} is not one of {known_metrics()}")
        return self


class GatesSettings(Settings):
    """The whole of configs/gates.yaml."""

    run_mode: Literal["enabled", "dry_run", "disabled"] = Field(
        description="`dry_run` records the decision without enforcing it; `disabled` checks "
        "nothing."
    )
    gates: list[GateSettings] = Field(min_length=1, description="All must pass.")


def load_gates(path: Path) -> GatesSettings:
    """Read and check a gates file.

    Raises:
        InputError: the file is missing, a key or metric is unknown, or a value is out of range.
    """
    return check(GatesSettings, read_yaml(path), path)


def decide(summary: Summary, gates: GatesSettings) -> dict[str, Any]:
    """Compare a summary with every gate.

    Returns:
        ``accepted`` (all gates passed; false when none was evaluated), ``enforced`` (whether a
        refusal stops the model), ``run_mode``, a sentence for each failed gate in ``reasons``,
        each gate with its measured ``value`` (None when there is none) and whether it ``passed``,
        and the digests of ``summary`` and ``model`` that were judged.
    """
    evaluated = gates.gates if gates.run_mode != "disabled" else []
    judged = [_judge(gate, summary) for gate in evaluated]
    reasons = [entry.pop("reason") for entry in judged]
    failed = [reason for reason in reasons if reason is not None]
    if gates.run_mode == "disabled":
        failed = ["The gates are disabled (run_mode), so nothing was checked."]
    return {
        "accepted": bool(judged) and not failed,
        "enforced": gates.run_mode == "enabled",
        "run_mode": gates.run_mode,
        "reasons": failed,
        "gates": judged,
        "summary": sha256_json(summary),
        "model": summary["digests"]["pruned"],
    }


def may_register(decision: dict[str, Any]) -> bool:
    """Whether a model with this decision may become a registered version."""
    return bool(decision["accepted"] or not decision["enforced"])


def _judge(gate: GateSettings, summary: Summary) -> dict[str, Any]:
    """Return one gate's entry of the decision, with a ``reason`` that is None when it passed."""
    value = _measure(gate.metric, summary)
    name = gate.name or gate.metric
    if value is None:
        passed = False
        reason = f"{name}: {gate.metric} was not measured or is not finite. {gate.why}"
    else:
        passed = value >= gate.limit if gate.comparison == "at_least" else value <= gate.limit
        side = "below" if gate.comparison == "at_least" else "above"
        reason = (
            f"{name}: {gate.metric} is {value:.6g}, {side} the limit {gate.limit:g}. {gate.why}"
        )
    return {
        "name": name,
        "metric": gate.metric,
        "comparison": gate.comparison,
        "limit": gate.limit,
        "value": value,
        "passed": passed,
        "why": gate.why,
        "reason": None if passed else reason,
    }


def _measure(metric_name: str, summary: Summary) -> float | None:
    """Return the finite value of a metric, or None when the summary does not hold one."""
    name, _, part = metric_name.partition(".")
    try:
        value = METRICS[name](summary, part) if part else METRICS[name](summary)
    except (KeyError, TypeError):
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
