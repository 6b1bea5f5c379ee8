"""The head of the report: what was gained, what it cost, and what the gates decide.

The report is made before the model in production is known, so it shows the gates that compare with
the dense model, and lists those that only `pruneflow run` can check.
"""

from typing import NamedTuple

from pruneflow.judge.gates import GateResult, GateSettings, GatesSettings, decide
from pruneflow.judge.summary import Summary
from pruneflow.measure.latency_record import Median
from pruneflow.report.number_format import MISSING
from pruneflow.settings.pipeline import DENSE


class GateRow(NamedTuple):
    """One gate, ready to print."""

    name: str
    limit: str
    found: str
    result: str  # passed, refused, or open: checked by the run
    why: str


class Ruling(NamedTuple):
    """What the gates against the dense model decide.

    Attributes:
        word: ``accepted``, ``refused``, or ``undecided`` where no gate decided or some are open.
        sentence: the same in a sentence, with the gates that are open.
        reasons: a sentence for each gate that refuses.
        gates: every gate of configs/gates.yaml.
    """

    word: str
    sentence: str
    reasons: list[str]
    gates: list[GateRow]


def verdict(summary: Summary) -> str:
    """Write in a sentence or two what was gained and what it cost."""
    perplexity, parameters, model = summary.perplexity, summary.parameters, summary.model
    shares = [
        f"{task.retention['value']:.0%} of {name.upper()}"
        for name, task in summary.tasks.items()
        if task.retention is not None
    ]
    *most, last = shares or [""]
    kept = f"{', '.join(most)} and {last}" if most else last
    sentence = (
        f"{model.name} is {parameters.ratio:.1%} smaller ({parameters.block_ratio:.1%} of "
        f"its block weights are removed) and decodes "
        f"{_decode_speed(summary.latency.speedup.decode)}; perplexity is "
        f"{perplexity.mean_ratio['value']:.2f} times the dense model's (at worst "
        f"{perplexity.worst['value']:.2f}, on {perplexity.worst['domain']}), and it keeps "
        f"{f'{kept} accuracy' if kept else 'no measurable accuracy'}."
    )
    if model.delivered == model.planned:
        return sentence
    broken = next((record for record in summary.rounds if record.status == "unhealthy"), None)
    why = ""
    if broken and broken.health:
        why = f" ({broken.round}: {broken.health.reason.removesuffix('.')})"
    what = "the dense model itself" if model.delivered == DENSE else f"round {model.delivered}"
    return f"{sentence} It is {what}, because a later round broke a health limit{why}."


def rule(summary: Summary, gates: GatesSettings) -> Ruling:
    """Check a summary against the gates that need no model but the dense one."""
    alone = [gate for gate in gates.gates if gate.against == "baseline"]
    open_gates = [gate for gate in gates.gates if gate.against == "production"]
    decision = decide(summary, gates.model_copy(update={"gates": alone}))
    if gates.run_mode == "disabled":
        sentence = "Neither accepted nor refused: the gates are disabled (run_mode)."
        return Ruling("undecided", sentence, [], [])
    rows = [_row(gate, entry) for gate, entry in zip(alone, decision.gates, strict=True)]
    rows += [_row(gate) for gate in open_gates]
    rest = ""
    if open_gates:
        rest = (
            f" `pruneflow run` checks {_gates(len(open_gates))} against the model in production "
            "and writes data/reports/decision.json."
        )
    if not alone:
        return Ruling("undecided", f"Not decided yet.{rest}", [], rows)
    mode = "" if decision.enforced else " The gates warn only (run_mode dry_run)."
    passed = sum(entry.passed for entry in decision.gates)
    if decision.reasons:
        sentence = f"Refused: {passed} of {_gates(len(alone))} against the dense model passed."
        return Ruling("refused", f"{sentence}{mode}", decision.reasons, rows)
    if open_gates:
        sentence = f"Passed: {passed} of {_gates(len(alone))} against the dense model.{rest}{mode}"
        return Ruling("undecided", sentence, [], rows)
    return Ruling("accepted", f"Accepted: {passed} of {_gates(len(alone))}.{mode}", [], rows)


def _decode_speed(speedup: Median) -> str:
    low, high = speedup["low"], speedup["high"]
    if low is None or high is None or low <= 1 <= high:
        return "with no measurable difference in speed"
    return f"{speedup['median']:.2f} times as fast"


def _gates(number: int) -> str:
    return f"{number} gate{'' if number == 1 else 's'}"


def _row(gate: GateSettings, entry: GateResult | None = None) -> GateRow:
    """Return a gate and the end of the interval that it uses; without an entry it is open."""
    words = {"at_least": "at least", "at_most": "at most", "improves": "better, or within"}
    found, result = None, "open"
    if entry is not None:
        found = entry.low if entry.comparison == "at_least" else entry.high
        result = "passed" if entry.passed else "refused"
    return GateRow(
        name=gate.title.replace("_", " "),
        limit=f"{words[gate.comparison]} {gate.limit:g}".replace("-", "\u2212"),
        found=MISSING if found is None else f"{found:.4g}".replace("-", "\u2212"),
        result=result,
        why=gate.why,
    )
