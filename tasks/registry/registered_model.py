"""Read a registered model from MLflow's SQLite store without MLflow, whose import takes seconds.

`versions.py` and `promotion.py`, which write through MLflow, share the names of aliases and tags.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneflow.settings.pipeline import RegistrySettings
from tasks.tracking.location import store_file

CANDIDATE, PRODUCTION, PREVIOUS = "candidate", "production", "previous"
ALIASES = (PRODUCTION, CANDIDATE, PREVIOUS)
DECISION_RUN = "decision_run"  # tag of a version: the MLflow run that its gates were decided in
PENDING = "pending_move"  # tag of the model: the entry of a move in progress
HISTORY = "move."  # prefix of the model tags that record its moves

_VERSIONS = """SELECT version, run_id FROM model_versions
    WHERE name = ? AND current_stage != 'Deleted_Internal' ORDER BY version DESC"""
_RUN = """SELECT runs.run_uuid FROM runs
    JOIN tags ON tags.run_uuid = runs.run_uuid
    JOIN experiments ON experiments.experiment_id = runs.experiment_id
    WHERE experiments.name = ? AND tags.key = ? AND tags.value = ?
    AND runs.lifecycle_stage = 'active' AND runs.status = 'FINISHED'
    ORDER BY runs.start_time DESC LIMIT 1"""


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model.

    Attributes:
        tags: tags of the model, including its history and a pending move.
        aliases: version number of each alias.
        versions: ``version``, ``run_id`` and tags of each version by number, the newest first.
    """

    tags: dict[str, str]
    aliases: dict[str, str]
    versions: dict[str, dict[str, str]]

    def by_alias(self) -> dict[str, dict[str, str] | None]:
        """Return the version of each alias in ALIASES, or None."""
        return {alias: self.versions.get(self.aliases.get(alias, "")) for alias in ALIASES}


def read_registered_model(settings: RegistrySettings) -> RegisteredModel | None:
    """Read a model from a SQLite store; an unregistered model is empty.

    Returns:
        None if the store is not an SQLite file or its tables are of another MLflow version.
    """
    name = settings.name
    model = _ask(settings, "SELECT key, value FROM registered_model_tags WHERE name = ?", name)
    aliases = _ask(
        settings, "SELECT alias, version FROM registered_model_aliases WHERE name = ?", name
    )
    numbers = _ask(settings, _VERSIONS, name)
    tags = _ask(settings, "SELECT version, key, value FROM model_version_tags WHERE name = ?", name)
    if model is None or aliases is None or numbers is None or tags is None:
        return None
    versions = {str(number): {"version": str(number), "run_id": run} for number, run in numbers}
    for number, key, value in sorted(tags):
        if str(number) in versions:
            versions[str(number)][key] = value
    return RegisteredModel(dict(model), {alias: str(number) for alias, number in aliases}, versions)


def find_run(settings: RegistrySettings, key: str, value: str) -> str | None:
    """Return the id of the newest finished run of the experiment with this tag, or None."""
    found = _ask(settings, _RUN, settings.experiment, key, value)
    return str(found[0][0]) if found else None


def history_of(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the moves recorded in a model's tags, the oldest first."""
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(HISTORY)]


def rolled_back_in(moves: Iterable[Mapping[str, Any]], version: str) -> bool:
    """Whether this version was rolled back: then only a user can promote it again."""
    for entry in reversed(list(moves)):
        if entry["version"] == version:
            return False
        if entry["former"] == version:
            return bool(entry["kind"] != "promotion")
    return False


def _ask(settings: RegistrySettings, query: str, *values: str) -> list[tuple[Any, ...]] | None:
    file = store_file(settings)
    if file is None:
        return None
    if not file.is_file():
        return []
    address = f"{Path(file).absolute().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True)) as store:
            return store.execute(query, values).fetchall()
    except sqlite3.Error:
        return None  # locked, damaged or of another version: MLflow reports which
