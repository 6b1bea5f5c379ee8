"""Serve the production version with MLflow's model server."""

import os
import sys

import mlflow

from pruneflow.errors import InputError
from pruneflow.settings.pipeline import RegistrySettings
from tasks.registry import promotion, versions


def serve(settings: RegistrySettings, port: int) -> None:
    """Replace this process by MLflow's server of the production version, on 127.0.0.1.

    The alias is resolved at start; a later promotion takes effect after a restart.

    Raises:
        InputError: nothing is in production, or its files are damaged.
    """
    promotion.undo_killed_move(settings)
    version = versions.status(settings)[versions.PRODUCTION]
    if version is None:
        raise InputError(
            f"{settings.name} has no version in production: `pruneflow run` or `pruneflow promote` "
            "puts one there"
        )
    with versions.checkpoint(settings, version["version"]):
        pass  # verifies its files
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    print(
        f"version {version['version']} of {settings.name} on http://127.0.0.1:{port} "
        "(/ping, /invocations)",
        flush=True,
    )
    model = f"models:/{settings.name}/{version['version']}"
    options = ["--model-uri", model, "--env-manager", "local", "--host", "127.0.0.1"]
    command = ["-m", "mlflow", "models", "serve", *options, "--port", str(port)]
    os.execve(sys.executable, [sys.executable, *command], environment)
