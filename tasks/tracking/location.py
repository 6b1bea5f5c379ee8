"""Where MLflow's store is, known without importing MLflow."""

from pathlib import Path
from urllib.parse import urlparse

from pruneflow.settings.pipeline import RegistrySettings


def is_server(settings: RegistrySettings) -> bool:
    """Whether the store is a server, which also knows where its files go."""
    return urlparse(settings.tracking_uri).scheme in ("http", "https")


def store_file(settings: RegistrySettings) -> Path | None:
    """Return the SQLite file of the store; None when the store is something else."""
    prefix = "sqlite:///"
    if not settings.tracking_uri.startswith(prefix):
        return None
    return Path(settings.tracking_uri.removeprefix(prefix))


def has_store(settings: RegistrySettings) -> bool:
    """Whether there is a store to ask: a file is made by the first run, a server is just there."""
    file = store_file(settings)
    return file is None or file.exists()
