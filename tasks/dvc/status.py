"""Whether any stage is outdated, according to DVC in this process."""

from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from pruneflow.artifacts import read_json, sha256_file, write_json
from pruneflow.environment import STAGE, installed_versions
from pruneflow.errors import DamagedArtifactError
from pruneflow.paths import DVC_LOCK, ENVIRONMENT
from pruneflow.workspace import STATE
from tasks.dvc.repair import touch_damaged_files

_PUSHED = STATE / "pushed.json"
_PLACES = (DVC_LOCK, Path(".dvc/config"), Path(".dvc/config.local"))


def is_up_to_date() -> bool:
    """Whether no stage is outdated.

    DVC always lists the stage `environment`: its file is compared with the installed versions.
    """
    try:
        if read_json(ENVIRONMENT) != installed_versions() or touch_damaged_files():
            return False
        with Repo() as repo:
            changed: dict[str, Any] = repo.status()
    except (DvcException, DamagedArtifactError):
        return False
    return changed == {STAGE: ["always changed"]}


def record_push() -> None:
    """Record that the remote has the outputs in dvc.lock."""
    write_json(_PUSHED, _pushable())


def is_pushed() -> bool:
    """Whether the outputs in dvc.lock were pushed to the current remote."""
    return _PUSHED.is_file() and read_json(_PUSHED) == _pushable()


def _pushable() -> dict[str, str]:
    return {str(path): sha256_file(path) for path in _PLACES if path.is_file()}
