"""Location of MLflow's store, without importing MLflow."""

from pathlib import Path
from urllib.parse import urlparse

from pruneflow.settings.pipeline import RegistrySettings


def is_server(settings: RegistrySettings) -> bool:
    """Whether the store is a server, which has an artifact location of its own."""
    return urlparse(settings.tracking_uri).scheme in ("http", "https")


def store_file(settings: RegistrySettings) -> Path | None:
    """Return the SQLite file of the store, or None if it is not one."""
    prefix = "sqlite:///"
    if not settings.tracking_uri.startswith(prefix):
        return None
    return Path(settings.tracking_uri.removeprefix(prefix))


def has_store(settings: RegistrySettings) -> bool:
    """Whether the store exists: the first run creates its file; a server is assumed to exist."""
    file = store_file(settings)
    return file is None or file.exists()
