"""Open MLflow's store, and report its errors in one line."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

import mlflow
from alembic.util.exc import CommandError
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from pruneflow.errors import InputError, StoreBusyError
from pruneflow.settings.pipeline import RegistrySettings
from tasks.tracking.location import FOLDER_SCHEMES, is_server, store_file
from tasks.tracking.relocation import follow_workspace

# MLflow's error codes of a server with users, and the remedies.
_REFUSALS = {
    "UNAUTHENTICATED": "does not know you: set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD",
    "PERMISSION_DENIED": "does not let you do this: ask its admin for the permission MANAGE",
}
_SERVER_SECONDS = 10  # within which a server that is up answers
_LOCKED = "database is locked"  # SQLite's message


def connect(settings: RegistrySettings) -> MlflowClient:
    """Open MLflow's store, created on first use; relative paths are relative to the workspace.

    Raises:
        InputError: the store cannot be opened.
    """
    os.environ.pop("MLFLOW_RUN_ID", None)  # start_run would continue that run
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    file = store_file(settings)
    if file is not None:
        _check_file(file)
        follow_workspace(settings)

    # Absolute, because MLflow caches open stores by URI, whatever the current folder.
    uri = settings.tracking_uri if file is None else f"sqlite:///{file.absolute()}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with store_errors(settings):
        client = mlflow.MlflowClient()
        if is_server(settings):
            _check_server(uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def store_errors(settings: RegistrySettings) -> Iterator[None]:
    """Turn MLflow's failures to reach its store, and its refusals, into one line.

    Raises:
        StoreBusyError: it is locked by another program.
        InputError: it cannot be used, or refuses.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, OSError) as error:
        code = getattr(error, "error_code", None)
        if code in _REFUSALS:
            raise InputError(
                f"MLflow at {settings.tracking_uri} {_REFUSALS[code]}: see mlflow/README.md"
            ) from None
        detail = " ".join(str(error).split())[:500]
        if _LOCKED in detail:
            raise _busy(settings.tracking_uri) from None
        raise InputError(
            f"MLflow's store {settings.tracking_uri} cannot be used ({detail}): check "
            "registry.tracking_uri in configs/pipeline.yaml"
        ) from None


def experiment(client: MlflowClient, settings: RegistrySettings) -> str:
    """Return the id of the experiment, created on first use.

    Its files go to `registry.artifact_location`; on a server to the server's default location when
    that setting is a relative folder, which other hosts cannot reach.
    """
    found = find_experiment(client, settings)
    if found is not None:
        return found
    location: str | None = settings.artifact_location
    place = urlparse(settings.artifact_location)
    if is_server(settings) and not (place.scheme or Path(settings.artifact_location).is_absolute()):
        location = None
    elif place.scheme in FOLDER_SCHEMES:
        folder = Path(unquote(place.path))
        folder.mkdir(parents=True, exist_ok=True)
        location = folder.absolute().as_uri()
    try:
        return str(client.create_experiment(settings.experiment, artifact_location=location))
    except MlflowException as error:
        made = client.get_experiment_by_name(settings.experiment)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or made is None:
            raise
        return str(made.experiment_id)  # another process created it first


def find_experiment(client: MlflowClient, settings: RegistrySettings) -> str | None:
    """Return the id of the experiment; None if it does not exist yet.

    Raises:
        InputError: it is deleted.
    """
    found = client.get_experiment_by_name(settings.experiment)
    if found is None:
        return None
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise InputError(
            f"MLflow's experiment {settings.experiment} is deleted: restore it with `mlflow "
            f"experiments restore -x {found.experiment_id}`, or change registry.experiment in "
            "configs/pipeline.yaml"
        )
    return str(found.experiment_id)


def _busy(store: str) -> StoreBusyError:
    return StoreBusyError(
        f"MLflow's store {store} is locked by another program: end it, or try again"
    )


def _check_file(file: Path) -> None:
    """Open the SQLite file once: MLflow itself would retry for minutes."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA schema_version")
    except (OSError, sqlite3.Error) as error:
        if _LOCKED in str(error):
            raise _busy(str(file)) from None
        raise InputError(
            f"MLflow's store {file} cannot be used ({error}): make it writable, or change "
            "registry.tracking_uri in configs/pipeline.yaml"
        ) from None


def _check_server(uri: str) -> None:
    """Ask the server once whether it is up: MLflow itself would retry for minutes."""
    http_request(
        get_default_host_creds(uri), "/health", "GET", max_retries=0, timeout=_SERVER_SECONDS
    )
