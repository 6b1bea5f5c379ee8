"""Artifacts follow the workspace: MLflow's SQLite store holds absolute paths to them."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from pruneflow.errors import InputError
from pruneflow.settings.pipeline import RegistrySettings
from tasks.tracking.location import FOLDER_SCHEMES, store_file

LOGGER = logging.getLogger(__name__)

_LOCATIONS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def follow_workspace(settings: RegistrySettings) -> None:
    """Correct the locations in the store of a workspace that was moved or copied.

    Without this, a copy would write to the files of the original, and its `pruneflow gc` would
    delete them. Only a store and an artifact folder inside the workspace are concerned.

    Raises:
        InputError: the artifacts did not come along.
    """
    file = store_file(settings)
    here = Path(settings.artifact_location)
    if file is None or file.is_absolute() or here.is_absolute() or not file.exists():
        return
    if urlparse(settings.artifact_location).scheme not in FOLDER_SCHEMES:
        return
    with closing(sqlite3.connect(file)) as store, store:
        recorded = _recorded_location(store, settings.experiment)
        if recorded is None or urlparse(recorded).scheme not in FOLDER_SCHEMES:
            return
        there = Path(unquote(urlparse(recorded).path))
        if there == here.absolute() or (there.is_relative_to(Path.cwd()) and there.is_dir()):
            return
        if here.is_dir() and there.is_dir() and there.samefile(here):
            return  # a link or a mount
        if not here.is_dir():
            raise InputError(
                f"MLflow's store {file} belongs to a workspace with its artifacts in {there}, and "
                f"this one has no {here}: copy that folder too"
            )
        for table, column in _LOCATIONS.items():
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (
                    here.absolute().as_uri(),
                    len(recorded) + 1,
                    recorded,
                    len(recorded) + 1,
                    f"{recorded}/",
                ),
            )
    LOGGER.warning(
        "the workspace was moved or copied: MLflow's artifacts are %s now, not %s",
        here.absolute(),
        there,
    )


def _recorded_location(store: sqlite3.Connection, experiment: str) -> str | None:
    try:
        query = "SELECT artifact_location FROM experiments WHERE name = ?"
        found = store.execute(query, (experiment,)).fetchone()
    except sqlite3.OperationalError:
        return None  # no tables yet, or locked: MLflow reports that
    return None if found is None else str(found[0])
