"""What Prefect does when a run ends: tell the webhook of the settings.

A hook of the flow and not its last step, so that a run that fails or crashes tells, too. It never
changes how the run ended: what goes wrong here is a warning in the run's log.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from flows.outcome import REFUSED, Outcome
from pruneflow.errors import PruneflowError
from pruneflow.paths import PAGE
from pruneflow.settings.pipeline import load_notify_settings, load_settings
from tasks.prefect.webhook import post, webhook
from tasks.registry import versions


def notify(flow: "Flow[Any, Any]", flow_run: FlowRun, state: State) -> None:
    """Tell how this run of a flow ended."""
    tell(flow.name, flow_run, state)


def tell(flow: str, flow_run: FlowRun, state: State) -> None:
    """Send what the settings want to be told: which ends, of scheduled runs or of all."""
    settings = load_notify_settings()
    event, url = _event(state), webhook(settings)
    watched = settings.runs == "all" or flow_run.deployment_id is not None
    if url is None or not watched or event not in settings.events:
        return
    problem = post(url, _message(flow, flow_run, state, event))
    if problem is not None:
        flow_run_logger(flow_run).warning(f"nobody was told how this run ended: {problem}")


def _event(state: State) -> str | None:
    if state.is_failed() or state.is_crashed():
        return "failed"
    if state.is_cancelling():
        return "cancelled"
    return "refused" if state.name == REFUSED else None


def _message(flow: str, flow_run: FlowRun, state: State, event: str) -> dict[str, Any]:
    outcome: Outcome | None = state.result() if event == "refused" else None
    reasons = [state.message or ""] if outcome is None else outcome.reasons
    return {
        "text": f"pruneflow: run {flow_run.name} {event}: {'; '.join(reasons)}",  # chats show it
        "flow": flow,
        "run": flow_run.name,
        "state": state.name,
        "reasons": reasons,
        "production": _in_production(),
        "report": None if outcome is None else str(PAGE.absolute()),
        "mlflow_run": None if outcome is None else outcome.run_id,
        "workspace": str(Path.cwd()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _in_production() -> str | None:
    """The version in production; None as well where settings or store cannot be read."""
    try:
        version = versions.status(load_settings().registry)[versions.PRODUCTION]
    except PruneflowError:
        return None
    return None if version is None else version["version"]


# What a flow is decorated with for its ends to be told.
TOLD: dict[str, Any] = {
    "on_completion": [notify],
    "on_failure": [notify],
    "on_crashed": [notify],
    "on_cancellation": [notify],
}
