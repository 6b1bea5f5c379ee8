"""The gates a pruned model must pass, and their decision.

A gate compares one metric (see `metrics.py`) with a limit, against the dense model or against the
model that is in production. It uses the worse end of the metric's 95 % interval, so that few
questions make it stricter, not more lenient. A measurement that is missing or not finite, and a
report about other files than the current ones, are refusals, never passes.
"""

from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from pruneflow.artifacts import sha256_json
from pruneflow.judge.compare import Comparison
from pruneflow.judge.intervals import Estimate
from pruneflow.judge.metrics import Measured, find_metric, known_metrics, measure
from pruneflow.judge.summary import Summary
from pruneflow.records import Record
from pruneflow.settings.base import Settings, check, read_yaml


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
    why: str = Field(min_length=1, description="One sentence for the reader of a refusal.")

    @property
    def title(self) -> str:
        """What reports call it."""
        return self.name or self.metric

    @model_validator(mode="after")
    def _metric_fits(self) -> Self:
        """Raise an error if the metric is unknown, or cannot be compared in the way asked for."""
        metric = find_metric(self.metric)
        if metric is None:
            raise ValueError(f"metric {self.metric} is unknown: choose one of {known_metrics()}")
        if self.against == "production" and not metric.of_two_records:
            raise ValueError(
                f"metric {self.metric} compares with the dense model only: use against: baseline"
            )
        if self.comparison == "improves" and metric.parity is None:
            raise ValueError(f"metric {self.metric} has no better side: use at_least or at_most")
        if self.comparison == "improves" and self.against != "production":
            raise ValueError(f"gate {self.title}: `improves` needs against: production")
        return self


class GatesSettings(Settings):
    """configs/gates.yaml."""

    run_mode: Literal["enabled", "dry_run", "disabled"] = Field(
        description="`dry_run` records the decision without enforcing it; `disabled` checks "
        "nothing."
    )
    gates: list[GateSettings] = Field(min_length=1, description="All must pass.")


class GateResult(Record):
    """One gate and its result."""

    name: str = Field(description="What reports call it.")
    metric: str = Field(description="The metric.")
    against: Literal["baseline", "production"] = Field(
        "baseline", description="The model that the metric compares with."
    )
    comparison: Literal["at_least", "at_most", "improves"] = Field(
        description="Side of the limit to be on."
    )
    limit: float = Field(description="The limit.")
    why: str = Field(description="Why the gate exists.")
    value: float | None = Field(None, description="The metric; null where it was not measured.")
    low: float | None = Field(None, description="Lower end of its 95 % interval.")
    high: float | None = Field(None, description="Upper end of its 95 % interval.")
    domain: str | None = Field(None, description="The domains the metric is about, if any.")
    reason: str | None = Field(None, description="Why it failed, or why it was not needed.")
    passed: bool = Field(description="Whether it passed.")


class JudgedAgainst(Record):
    """The model that was in production when the gates decided."""

    version: str = Field(description="In the registry.")
    model: str = Field(description="Its model digest.")


class Decision(Record):
    """The content of decision.json."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    accepted: bool = Field(description="Whether all gates passed; false when none was evaluated.")
    enforced: bool = Field(description="Whether a refusal keeps the model out of the registry.")
    run_mode: Literal["enabled", "dry_run", "disabled"] = Field(description="run_mode.")
    reasons: list[str] = Field(description="A sentence for each failed gate and stale file.")
    gates: list[GateResult] = Field(description="Every gate.")
    digests: dict[str, str | dict[str, str]] = Field(
        description="Digests of the summary, with `summary` for its own and `gates` for the gates."
    )
    model: str | None = Field(description="Digest of the judged model; null where a stage failed.")
    production: JudgedAgainst | None = Field(
        description="The model then in production; null where there was none, or no gate asked."
    )

    @property
    def may_register(self) -> bool:
        """Whether the model may become a registered version."""
        return self.accepted or not self.enforced


class Production(NamedTuple):
    """The model now in production, as the gates see it.

    Attributes:
        version: in the registry.
        model: its digest.
        compared: result of `compare` for it and the candidate; None if they cannot be compared.
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
    return check(GatesSettings, read_yaml(path), path)


def decide(
    summary: Summary,
    gates: GatesSettings,
    production: Production | None = None,
    stale: list[str] | None = None,
) -> Decision:
    """Compare a summary with every gate.

    Args:
        summary: what the stage `report` wrote.
        gates: metrics and limits.
        production: the model now in production; None when there is none.
        stale: sentences about files that are not those the summary was made from.
    """
    evaluated = gates.gates if gates.run_mode != "disabled" else []
    judged = [_judge(gate, summary, production) for gate in evaluated]
    failed = [str(entry.reason) for entry in judged if not entry.passed]
    if evaluated:
        failed = [*(stale or []), *failed]
    else:
        failed = ["The gates are disabled (run_mode), so nothing was checked."]
    return Decision(
        accepted=bool(judged) and not failed,
        enforced=gates.run_mode == "enabled",
        run_mode=gates.run_mode,
        reasons=failed,
        gates=judged,
        digests={
            **summary.digests.to_json(),
            "summary": sha256_json(summary.to_json()),
            "gates": _digest(gates),
        },
        model=summary.digests.pruned,
        production=None
        if production is None
        else JudgedAgainst(version=production.version, model=production.model),
    )


def refuse(stage: str, reason: str, gates: GatesSettings) -> Decision:
    """Return the decision about a run that a stage ended: there is no model, so it is refused."""
    return Decision(
        accepted=False,
        enforced=gates.run_mode == "enabled",
        run_mode=gates.run_mode,
        reasons=[f"{stage} ended in an error, so there is no model to judge: {reason}"],
        gates=[],
        digests={"gates": _digest(gates)},
        model=None,
        production=None,
    )


def _digest(gates: GatesSettings) -> str:
    return sha256_json(gates.model_dump(mode="json"))


def _judge(gate: GateSettings, summary: Summary, production: Production | None) -> GateResult:
    """Return one gate's entry of the decision."""

    def result(
        passed: bool, reason: str | None = None, value: Measured | None = None
    ) -> GateResult:
        asked = gate.model_dump(exclude={"name"})
        verdict = {"name": gate.title, "passed": passed, "reason": reason}
        return GateResult.model_validate({**asked, **verdict, **(value or {})})

    def refused(problem: str, value: Measured | None = None) -> GateResult:
        return result(False, f"{gate.title}: {problem}. {gate.why}", value)

    found: Comparison = summary
    if gate.against == "production":
        if production is None:
            return result(True, "Nothing is in production.")
        if production.model == summary.digests.pruned:
            return result(True, "This model is in production.")
        if production.compared is None:
            return refused(
                f"version {production.version}, in production, cannot be compared: "
                f"{production.problem}"
            )
        found = production.compared
    value = measure(gate.metric, found)
    if value is None:
        whose = " against production" if gate.against == "production" else ""
        missing = f"{gate.metric} was not measured{whose} or is not finite"
        return refused(missing + _unmeasurable(gate, found))
    broken = _broken(gate, value, found)
    if broken is None:
        return result(True, None, value)
    return refused(f"{gate.metric} {broken}", value)


def _broken(gate: GateSettings, value: Measured, found: Comparison) -> str | None:
    """Describe how a value breaks its gate, or return None."""
    if gate.comparison == "improves":
        return _no_improvement(gate, value, found)
    low, high = _interval(value)
    if gate.comparison == "at_least":
        side, passed = "below", low >= gate.limit
    else:
        side, passed = "above", high <= gate.limit
    if passed:
        return None
    return f"is {_figures(value)}, {side} the limit {gate.limit:g}{_where(value)}"


def _no_improvement(gate: GateSettings, value: Measured, found: Comparison) -> str | None:
    metric = find_metric(gate.metric)
    assert metric is not None and metric.parity is not None  # GateSettings has checked
    low, high = _interval(value)
    if metric.better == "lower":
        better, no_worse = high < metric.parity, high <= gate.limit
    else:
        better, no_worse = low > metric.parity, low >= gate.limit
    smaller = found.bytes.pruned < found.bytes.dense
    if better or (no_worse and smaller):
        return None
    short = "the model is no smaller" if no_worse else f"worse than the limit {gate.limit:g}"
    return (
        f"against production is {_figures(value)}: not better than {metric.parity:g}, and "
        f"{short}{_where(value)}"
    )


def _interval(value: Estimate) -> tuple[float, float]:
    """Return the ends, which a measured metric has."""
    assert value["low"] is not None and value["high"] is not None
    return value["low"], value["high"]


def _figures(value: Estimate) -> str:
    if value["low"] is None or value["low"] == value["high"]:
        return f"{value['value']:.6g}"
    return f"{value['value']:.4g} (95 % interval {value['low']:.4g} to {value['high']:.4g})"


def _where(value: Measured) -> str:
    """Name the domains behind a figure whose metric does not."""
    return f", on {value['domain']}" if value["domain"] else ""


def _unmeasurable(gate: GateSettings, found: Comparison) -> str:
    """Explain why a task that was asked has no figure."""
    task = found.tasks.get(gate.metric.partition(".")[2])
    if task is None or task.measurable:
        return ""
    whose = "dense" if gate.against == "baseline" else "production"
    return (
        f" (the {whose} model's own accuracy, {_figures(task.dense)}, is not above chance, "
        f"{task.chance:.4g})"
    )
