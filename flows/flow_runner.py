"""Run a flow in this process, ending in a result or a one-line error."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.errors import InputError, PruneflowError

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import State

    from flows.outcome import Outcome
    from pruneflow.judge.pareto import Row


def set_environment() -> None:
    """Set what Prefect reads when it is imported; whatever the user has set stays.

    Without a server of the user's, Prefect keeps its state in the workspace, not in $HOME.
    """
    if "PREFECT_HOME" not in os.environ and "PREFECT_API_URL" not in os.environ:
        os.environ["PREFECT_HOME"] = str(Path(".pruneflow/prefect").absolute())
    for key, value in {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s %(message)s",
        "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s %(message)s",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }.items():
        os.environ.setdefault(key, value)


def run_flow() -> "Outcome":
    """Run the pipeline and return its outcome."""
    print("starting Prefect", file=sys.stderr, flush=True)
    from flows.pipeline import pipeline

    return _result(pipeline)


def run_sweep(workers: int) -> "list[Row]":
    """Run the sweep and return the rows of its table."""
    print("starting Prefect", file=sys.stderr, flush=True)
    from flows.sweep import sweep

    return _result(sweep, workers=workers)


def _result(flow: "Flow[..., State]", **parameters: Any) -> Any:
    """Run a flow and return its result, or raise the error that it ended with."""
    from tasks.dvc.repro import BAD_INPUT
    from tasks.registry.lock import check_server

    check_server()
    _quieten()
    state = flow(**parameters, return_state=True)
    if state.is_completed():
        return state.result()
    if state.is_cancelled():
        raise KeyboardInterrupt
    if state.is_crashed():
        raise PruneflowError(
            f"the run crashed ({' '.join(str(state.message).split())}): what is done is kept, "
            "run again to continue"
        )
    if state.name == BAD_INPUT:
        raise InputError(state.message)
    raise PruneflowError(state.message)


def _quieten() -> None:
    """Show only the logs of our tasks and flows, and warnings of other loggers, on the terminal.

    Prefect's own messages about states appear only on the run's page; a crash is shown in full.
    """
    import logging

    import prefect
    from prefect.logging.configuration import setup_logging

    engine = str(Path(prefect.__file__).parent)
    dask = ("distributed", "prefect.task_runner")

    def is_shown(record: logging.LogRecord) -> bool:
        if not record.pathname.startswith(engine) and not record.name.startswith(dask):
            return record.levelno >= logging.INFO
        crashed = record.exc_info is not None and record.exc_info[0] is not None
        states = record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))
        return crashed if states else record.levelno >= logging.WARNING

    setup_logging()
    for handler in logging.getLogger().handlers:
        handler.addFilter(is_shown)
