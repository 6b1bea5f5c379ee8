"""Notify the webhook of the settings when a flow run ends.

This is a state hook of the flow, not an automation: an automation needs a server that outlives the
run, and `pruneflow run` may start its own. A hook never changes how the run ended: its errors are
warnings in the run's log.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import Flow as FlowRecord
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from flows.outcome import REFUSED, Outcome
from pruneflow.errors import PruneflowError
from pruneflow.paths import PAGE
from pruneflow.settings.pipeline import load_notify_settings, load_settings
from tasks.prefect.webhook import send, webhook_url
from tasks.registry import versions


def notify(flow: Flow[Any, Any] | FlowRecord, flow_run: FlowRun, state: State) -> None:
    """Send a notification about a finished run, if the settings ask for one."""
    settings = load_notify_settings()
    event, url = _event(state), webhook_url(settings)
    watched = settings.runs == "all" or flow_run.deployment_id is not None
    if url is None or not watched or event not in settings.events:
        return
    error = send(url, _message(flow.name, flow_run, state, event))
    if error is not None:
        flow_run_logger(flow_run).warning(f"no notification was sent: {error}")


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
    """Return the version in production; None also if settings or store cannot be read."""
    try:
        version = versions.status(load_settings().registry)[versions.PRODUCTION]
    except PruneflowError:
        return None
    return None if version is None else version["version"]


HOOKS: dict[str, Any] = {
    "on_completion": [notify],
    "on_failure": [notify],
    "on_crashed": [notify],
    "on_cancellation": [notify],
}
"""Arguments of `flow` that send notifications."""
