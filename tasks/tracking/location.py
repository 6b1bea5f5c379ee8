"""Location of MLflow's store, without importing MLflow."""

from pathlib import Path
from urllib.parse import urlparse

from pruneflow.errors import InputError
from pruneflow.settings.pipeline import RegistrySettings

FOLDER_SCHEMES = ("", "file")


def is_server(settings: RegistrySettings) -> bool:
    """Whether the store is a server, which has an artifact location of its own."""
    return urlparse(settings.tracking_uri).scheme in ("http", "https")


def store_file(settings: RegistrySettings) -> Path | None:
    """Return the SQLite file of the store, or None if it is not one.

    Raises:
        InputError: MLflow cannot open a file in this folder.
    """
    prefix = "sqlite:///"
    if not settings.tracking_uri.startswith(prefix):
        return None
    file = Path(settings.tracking_uri.removeprefix(prefix))
    # MLflow takes the first for the beginning of a query, puts the second into an SQL string, and
    # decodes the third in paths that are no URLs.
    wrong = next((character for character in "?'%" if character in str(file.absolute())), None)
    if wrong is not None:
        raise InputError(
            f"MLflow's SQLite store cannot be in a folder whose path has {wrong} "
            f"({file.parent.absolute()}): rename that folder"
        )
    return file


def has_store(settings: RegistrySettings) -> bool:
    """Whether the store exists: the first run creates its file; a server is assumed to exist."""
    file = store_file(settings)
    return file is None or file.exists()
