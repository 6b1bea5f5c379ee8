"""The gates a pruned model must pass, and the decision they come to.

A gate compares one metric (see `metrics.py`) with a limit, against the dense model or against the
model that is in production. It looks at the worse end of the metric's 95 % interval, so that few
questions refuse rather than excuse. An unknown metric, a measurement that is missing or not
finite, and a report about other files than those there are now: each is a refusal, never a pass.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from pruneflow.artifacts import sha256_json
from pruneflow.errors import InputError
from pruneflow.judge.metrics import Comparison, find_metric, known_metrics, measure
from pruneflow.settings.base import Settings, check, read_yaml

SIDES = {"at_least": ("below", "low"), "at_most": ("above", "high")}


class GateSettings(Settings):
    """One gate."""

    name: str | None = Field(None, description="What reports call it; the metric when absent.")
    metric: str = Field(description="A metric of pruneflow/judge/metrics.py.")
    against: Literal["baseline", "production"] = Field(
        "baseline", description="The dense model, or the model now in production, if there is one."
    )
    comparison: Literal["at_least", "at_most", "improves"] = Field(
        description="Side of the limit to be on. `improves`: better than the other model, or "
        "within `limit` of it and smaller on disk."
    )
    limit: float = Field(description="The limit itself passes.")
    why: str = Field(min_length=1, description="One sentence for who reads a refusal.")

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or self.metric


class GatesSettings(Settings):
    """The whole of configs/gates.yaml."""

    run_mode: Literal["enabled", "dry_run", "disabled"] = Field(
        description="`dry_run` records the decision without enforcing it; `disabled` checks "
        "nothing."
    )
    gates: list[GateSettings] = Field(min_length=1, description="All must pass.")


class Production(NamedTuple):
    """The model now in production, as the gates see it.

    Attributes:
        version: in the registry.
        model: its digest.
        compared: what `compare` says of it and the candidate; None where they cannot be compared.
        problem: why they cannot; else None.
    """

    version: str
    model: str
    compared: Comparison | None
    problem: str | None = None


def load_gates(path: Path) -> GatesSettings:
    """Read and check a gates file.

    Raises:
        InputError: the file is missing, a key or metric is unknown, or a value is out of range.
    """
    gates = check(GatesSettings, read_yaml(path), path)
    for gate in gates.gates:
        problem = _unknown(gate)
        if problem:
            raise InputError(f"{path}: {problem}")
    return gates


def decide(
    summary: Comparison,
    gates: GatesSettings,
    production: Production | None = None,
    stale: list[str] | None = None,
) -> dict[str, Any]:
    """Compare a summary with every gate.

    Args:
        summary: what the stage `report` wrote.
        gates: metrics and limits.
        production: the model now in production; None when there is none.
        stale: sentences about files that are not those the summary was made from.

    Returns:
        ``accepted`` (all gates passed; false when none was evaluated), ``enforced`` (whether a
        refusal stops the model), ``run_mode``, a sentence for each failed gate in ``reasons``,
        each gate with its measured ``value`` and interval (None when there is none) and whether it
        ``passed``, the ``digests`` that were judged, and the version in ``production``.
    """
    evaluated = gates.gates if gates.run_mode != "disabled" else []
    judged = [_judge(gate, summary, production) for gate in evaluated]
    failed = [entry["reason"] for entry in judged if not entry["passed"]]
    if evaluated:
        failed = [*(stale or []), *failed]
    else:
        failed = ["The gates are disabled (run_mode), so nothing was checked."]
    return {
        "accepted": bool(judged) and not failed,
        "enforced": gates.run_mode == "enabled",
        "run_mode": gates.run_mode,
        "reasons": failed,
        "gates": judged,
        "digests": {
            **summary["digests"],
            "summary": sha256_json(summary),
            "gates": sha256_json(gates.model_dump(mode="json")),
        },
        "model": summary["digests"]["pruned"],
        "production": None
        if production is None
        else {"version": production.version, "model": production.model},
    }


def refuse(stage: str, reason: str, gates: GatesSettings) -> dict[str, Any]:
    """Return the decision about a run that a stage ended: there is no model, so it is refused."""
    return {
        "accepted": False,
        "enforced": gates.run_mode == "enabled",
        "run_mode": gates.run_mode,
        "reasons": [f"{stage} ended in an error, so there is no model to judge: {reason}"],
        "gates": [],
        "digests": {"gates": sha256_json(gates.model_dump(mode="json"))},
        "model": None,
        "production": None,
    }


def may_register(decision: dict[str, Any]) -> bool:
    """Whether a model with this decision may become a registered version."""
    return bool(decision["accepted"] or not decision["enforced"])


def _unknown(gate: GateSettings) -> str | None:
    """Say what a gate asks for that there is not, or None."""
    found = find_metric(gate.metric)
    if found is None:
        return f"metric {gate.metric} is unknown: choose one of {known_metrics()}"
    if gate.against == "production" and not found[0].of_two_records:
        return (
            f"metric {gate.metric} is measured beside the dense model only: use against: baseline"
        )
    if gate.comparison == "improves":
        if found[0].parity is None:
            return f"metric {gate.metric} cannot say which model is better: use at_least or at_most"
        if gate.against != "production":
            return f"gate {gate.title}: `improves` needs against: production"
    return None


def _judge(
    gate: GateSettings, summary: Comparison, production: Production | None
) -> dict[str, Any]:
    """Return one gate's entry of the decision."""
    entry: dict[str, Any] = {
        "name": gate.title,
        **gate.model_dump(mode="json", exclude={"name"}),
        **dict.fromkeys(("value", "low", "high", "domain", "reason")),
        "passed": False,
    }
    problem = _unknown(gate)
    found = summary
    if problem is None and gate.against == "production":
        if production is None:
            return {**entry, "passed": True, "reason": "Nothing is in production."}
        if production.model == summary["digests"]["pruned"]:
            return {**entry, "passed": True, "reason": "This model is in production."}
        if production.compared is None:
            problem = f"version {production.version}, in production, cannot be compared: "
            problem += str(production.problem)
        else:
            found = production.compared
    if problem is not None:
        return {**entry, "reason": f"{gate.title}: {problem}. {gate.why}"}
    value = measure(gate.metric, found)
    if value is None:
        whose = " against production" if gate.against == "production" else ""
        reason = f"{gate.title}: {gate.metric} was not measured{whose} or is not finite"
        return {**entry, "reason": f"{reason}{_unmeasurable(gate, found)}. {gate.why}"}
    entry.update(value)
    broken = _broken(gate, entry, found)
    if broken is None:
        return {**entry, "passed": True}
    return {**entry, "reason": f"{gate.title}: {gate.metric} {broken}. {gate.why}"}


def _broken(gate: GateSettings, value: dict[str, Any], found: Comparison) -> str | None:
    """Say how a value breaks its gate, or None."""
    if gate.comparison == "improves":
        return _no_improvement(gate, value, found)
    side, end = SIDES[gate.comparison]
    passed = value[end] >= gate.limit if side == "below" else value[end] <= gate.limit
    if passed:
        return None
    return f"is {_figures(value)}, {side} the limit {gate.limit:g}{_where(value)}"


def _no_improvement(gate: GateSettings, value: dict[str, Any], found: Comparison) -> str | None:
    known = find_metric(gate.metric)
    assert known is not None and known[0].parity is not None  # _unknown has looked
    parity = known[0].parity
    if known[0].better == "lower":
        better, no_worse = value["high"] < parity, value["high"] <= gate.limit
    else:
        better, no_worse = value["low"] > parity, value["low"] >= gate.limit
    smaller = found["bytes"]["pruned"] < found["bytes"]["dense"]
    if better or (no_worse and smaller):
        return None
    short = "the model is no smaller" if no_worse else f"worse than the limit {gate.limit:g}"
    figures = _figures(value)
    return (
        f"against production is {figures}: not better than {parity:g}, and {short}{_where(value)}"
    )


def _figures(value: dict[str, Any]) -> str:
    if value["low"] is None or value["low"] == value["high"]:
        return f"{value['value']:.6g}"
    return f"{value['value']:.4g} (95 % interval {value['low']:.4g} to {value['high']:.4g})"


def _where(value: dict[str, Any]) -> str:
    """Name the domains behind a figure whose metric does not."""
    return f", on {value['domain']}" if value["domain"] else ""


def _unmeasurable(gate: GateSettings, found: Comparison) -> str:
    """Say why a task that was asked has no figure."""
    task = found.get("tasks", {}).get(gate.metric.partition(".")[2])
    if not isinstance(task, dict) or task.get("measurable") is not False:
        return ""
    whose = "dense" if gate.against == "baseline" else "production"
    return (
        f" (the {whose} model's own accuracy, {_figures(task['dense'])}, is not above chance, "
        f"{task['chance']:.4g})"
    )
