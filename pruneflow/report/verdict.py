"""What the report says first: what was gained, what it cost, and whether the gates accept it.

The report is made before a model in production is looked at, so it holds the result against the
gates that compare with the dense model, and says which of them are left to the run.
"""

from typing import Any, NamedTuple

from pruneflow.judge.gates import GateSettings, GatesSettings, decide
from pruneflow.report.number_format import MISSING
from pruneflow.settings.pipeline import DENSE


class GateRow(NamedTuple):
    """One gate, ready to print."""

    name: str
    limit: str
    found: str
    result: str  # passed, refused, or open: left to the run
    why: str


class Ruling(NamedTuple):
    """What the gates against the dense model come to.

    Attributes:
        word: ``accepted``, ``refused``, or ``undecided`` where no gate judged or some are left.
        sentence: the same in a sentence, with what is left to the run.
        reasons: a sentence for each gate that refuses.
        gates: every gate of configs/gates.yaml.
    """

    word: str
    sentence: str
    reasons: list[str]
    gates: list[GateRow]


def verdict(summary: dict[str, Any]) -> str:
    """Say in a sentence or two what was gained and what it cost."""
    perplexity, parameters, model = summary["perplexity"], summary["parameters"], summary["model"]
    shares = [
        f"{task['retention']['value']:.0%} of {name.upper()}"
        for name, task in summary["tasks"].items()
        if task["measurable"]
    ]
    *most, last = shares or [""]
    kept = f"{', '.join(most)} and {last}" if most else last
    sentence = (
        f"{model['name']} is {parameters['ratio']:.1%} smaller ({parameters['block_ratio']:.1%} of "
        f"its block weights are gone) and decodes "
        f"{summary['latency']['speedup']['decode']['median']:.2f} times as fast; perplexity is "
        f"{perplexity['mean_ratio']['value']:.2f} times the dense model's (at worst "
        f"{perplexity['worst']['value']:.2f}, on {perplexity['worst']['domain']}), and it keeps "
        f"{f'{kept} accuracy' if kept else 'no measurable accuracy'}."
    )
    if model["delivered"] == model["planned"]:
        return sentence
    broken = next((record for record in summary["rounds"] if record["status"] == "unhealthy"), None)
    why = f" ({broken['round']}: {broken['health']['reason'].removesuffix('.')})" if broken else ""
    delivered = model["delivered"]
    what = "the dense model itself" if delivered == DENSE else f"what round {delivered} left"
    return f"{sentence} It is {what}, for a later round broke a health limit{why}."


def rule(summary: dict[str, Any], gates: GatesSettings) -> Ruling:
    """Hold a summary against the gates that need no model but the dense one."""
    alone = [gate for gate in gates.gates if gate.against == "baseline"]
    left = [gate for gate in gates.gates if gate.against == "production"]
    decision = decide(summary, gates.model_copy(update={"gates": alone}))
    rows = [_row(entry) for entry in decision["gates"]]
    if gates.run_mode == "disabled":
        sentence = "Neither accepted nor refused: the gates are disabled (run_mode)."
        return Ruling("undecided", sentence, [], [])
    rows += [_left(gate) for gate in left]
    rest = f" {_left_sentence(left)}" if left else ""
    if not alone:
        return Ruling("undecided", f"Not decided yet.{rest}", [], rows)
    reasons = decision["reasons"]
    mode = "" if decision["enforced"] else " The gates only record (run_mode dry_run)."
    if reasons:
        sentence = f"Refused by {len(reasons)} of {_gates(len(alone))} against the dense model."
        return Ruling("refused", f"{sentence}{mode}", reasons, rows)
    if left:
        sentence = f"Passes {_gates(len(alone))} against the dense model.{rest}{mode}"
        return Ruling("undecided", sentence, [], rows)
    return Ruling("accepted", f"Accepted by {_gates(len(alone))}.{mode}", [], rows)


def _left_sentence(left: list[GateSettings]) -> str:
    return (
        f"{_gates(len(left)).capitalize()} more, against the model in production: pruneflow run "
        "decides and writes data/reports/decision.json."
    )


def _gates(number: int) -> str:
    return f"{number} gate{'' if number == 1 else 's'}"


def _row(entry: dict[str, Any]) -> GateRow:
    return GateRow(
        entry["name"].replace("_", " "),
        _limit(entry["comparison"], entry["limit"]),
        _found(entry),
        "passed" if entry["passed"] else "refused",
        entry["why"],
    )


def _left(gate: GateSettings) -> GateRow:
    limit = _limit(gate.comparison, gate.limit)
    return GateRow(gate.title.replace("_", " "), limit, MISSING, "open", gate.why)


def _limit(comparison: str, limit: float) -> str:
    words = {"at_least": "at least", "at_most": "at most", "improves": "better, or within"}
    return f"{words[comparison]} {limit:g}".replace("-", "\u2212")


def _found(entry: dict[str, Any]) -> str:
    """Write the worse end of the interval, which is what the gate looks at."""
    end = "low" if entry["comparison"] == "at_least" else "high"
    value = entry[end] if entry[end] is not None else entry["value"]
    return MISSING if value is None else f"{value:.4g}".replace("-", "\u2212")
