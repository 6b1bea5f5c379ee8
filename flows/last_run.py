"""Whether a run would change nothing, checked without importing Prefect, MLflow or torch.

Only files, DVC and a local store are read. In any doubt the answer is no, and the flow runs.
"""

from flows.outcome import Outcome
from pruneflow.artifacts import read_json, sha256_json
from pruneflow.errors import PruneflowError
from pruneflow.judge.gates import Decision, GatesSettings
from pruneflow.judge.summary import Summary
from pruneflow.paths import DECISION, SUMMARY
from pruneflow.records import parse_record, read_record
from pruneflow.settings.pipeline import PipelineSettings
from pruneflow.workspace import FLOW_RUN
from tasks.dvc.status import is_pushed, is_up_to_date
from tasks.registry.registered_model import (
    CANDIDATE,
    PENDING,
    PRODUCTION,
    RegisteredModel,
    find_run,
    history_of,
    read_registered_model,
    rolled_back_in,
)
from tasks.tracking.git_state import git_state


def standing_outcome(settings: PipelineSettings, gates: GatesSettings) -> Outcome | None:
    """Return the outcome of the last run if a run now would change nothing; None otherwise.

    That is: no stage is outdated, the decision belongs to the current summary, gates and production
    version, it is logged in MLflow, and an accepted model has the alias that `registry.promotion`
    gives it and was pushed.
    """
    model = read_registered_model(settings.registry)
    if model is None or PENDING in model.tags or FLOW_RUN.exists():
        return None
    try:
        summary, stored = read_record(Summary, SUMMARY), read_json(DECISION)
        decision = parse_record(Decision, stored, str(DECISION))
        if not _is_about(decision, summary, settings, gates, model) or not is_up_to_date():
            return None
        return _outcome(summary, decision, sha256_json(stored), settings, model)
    except (PruneflowError, KeyError):
        return None


def _is_about(
    decision: Decision,
    summary: Summary,
    settings: PipelineSettings,
    gates: GatesSettings,
    model: RegisteredModel,
) -> bool:
    """Whether a decision was made from this summary, these gates and this production version."""
    digests, production = decision.digests, model.by_alias()[PRODUCTION]
    if (
        digests["summary"] != sha256_json(summary.to_json())
        or digests["settings"] != settings.digest()
        or digests["gates"] != sha256_json(gates.model_dump(mode="json"))
    ):
        return False
    if production is not None and production["model_digest"] == decision.model:
        return True
    compared = decision.production.version if decision.production else None
    asked = any(gate.against == "production" for gate in decision.gates)
    return not asked or compared == (production or {}).get("version")


def _outcome(
    summary: Summary,
    decision: Decision,
    digest: str,
    settings: PipelineSettings,
    model: RegisteredModel,
) -> Outcome | None:
    registry, accepted, reasons = settings.registry, decision.accepted, decision.reasons
    run_id = find_run(registry, "decision_digest", digest)
    if run_id is None:
        return None
    if not decision.may_register:
        broken = any(not gate.passed for gate in decision.gates)
        # Files that were stale may be as they were again: only broken gates refuse again.
        return Outcome(accepted, reasons, summary, run_id) if broken else None
    version = model.by_alias()[CANDIDATE]
    if (
        version is None
        or version["model_digest"] != decision.model
        or version["decision_digest"] != digest
        or (accepted and registry.push and not is_pushed())
    ):
        return None
    number = version["version"]
    in_production = model.aliases.get(PRODUCTION) == number
    if not in_production:
        # A manual promotion requires the commit that a run records with the version.
        if (version["git_commit"], version["git_dirty"]) != git_state():
            return None
        rolled_back = rolled_back_in(history_of(model.tags), number)
        if accepted and registry.promotion == "auto" and not rolled_back:
            return None
    return Outcome(accepted, reasons, summary, run_id, number, in_production)
