"""Whether any stage is outdated, according to DVC in this process."""

from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from pruneflow.artifacts import read_json, sha256_file, write_json
from pruneflow.environment import STAGE, installed_versions
from pruneflow.errors import DamagedArtifactError, InputError
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


def check_cache() -> str:
    """Check that DVC puts files, not links to its cache, into the workspace; returns how.

    Raises:
        InputError: `cache.type` allows symbolic links, through which a stage would write.
    """
    try:
        with Repo() as repo:
            found = repo.config["cache"].get("type") or ["reflink", "copy"]
    except DvcException as error:
        raise InputError(f"DVC cannot read its configuration ({error}): correct it") from None
    kinds = found.split(",") if isinstance(found, str) else list(found)
    if "symlink" in kinds:
        raise InputError(
            "DVC's cache.type allows symlink, and a model behind links can be neither verified nor "
            "registered: run `dvc config cache.type reflink,copy`, then `dvc checkout --relink`"
        )
    return ",".join(kinds)


def record_push() -> None:
    """Record that the remote has the outputs in dvc.lock."""
    write_json(_PUSHED, _pushable())


def is_pushed() -> bool:
    """Whether the outputs in dvc.lock were pushed to the current remote."""
    return _PUSHED.is_file() and read_json(_PUSHED) == _pushable()


def _pushable() -> dict[str, str]:
    return {str(path): sha256_file(path) for path in _PLACES if path.is_file()}
