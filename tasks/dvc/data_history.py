"""Earlier states of the calibration data, as git and DVC keep them."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.scm import RevError, SCMError

from pruneflow.artifacts import MANIFEST
from pruneflow.data.data_diff import DataState, compare, load_state
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.paths import CALIBRATION_SET, DOCUMENTS, DVC_LOCK


def changes_since(revision: str) -> dict[str, Any]:
    """Compare the calibration data of a git revision with that of the workspace.

    Returns:
        What `compare` says, and the ``revision`` with its ``commit``.

    Raises:
        InputError: there is no such revision, it has no calibration data or its files are neither
            in DVC's cache nor in its remote, or the workspace has no calibration data yet.
    """
    if not (DOCUMENTS / MANIFEST).is_file() or not (CALIBRATION_SET / MANIFEST).is_file():
        raise InputError(
            f"{CALIBRATION_SET.parent} has no calibration data to compare: run "
            "`dvc repro calibration`, or `dvc pull` where it was pushed"
        )
    now = load_state(DOCUMENTS, CALIBRATION_SET)
    with _committed_state(revision) as (then, commit):
        return {"revision": revision, "commit": commit, **compare(then, now)}


@contextmanager
def _committed_state(revision: str) -> Iterator[tuple[DataState, str]]:
    """Yield the state that a revision's dvc.lock describes, copied out of DVC's store."""
    try:
        files = DVCFileSystem(rev=revision)
        commit = str(files.repo.get_rev())  # the revision is looked up here, not before
    except RevError:
        raise InputError(
            f"git knows no revision {revision}: give a commit, branch or tag, e.g. HEAD~1"
        ) from None
    except SCMError:
        raise InputError(
            "`data diff` compares with a git revision, and this folder is no git repository: "
            "run `git init` and commit dvc.lock after a run"
        ) from None
    except (DvcException, OSError) as error:
        raise InputError(f"{revision} cannot be opened ({_line(error)})") from None
    with tempfile.TemporaryDirectory(prefix="pruneflow-data-") as place:
        documents, chosen = Path(place) / "documents", Path(place) / "set"
        try:
            _check_committed(files, revision)
            for path in files.find(DOCUMENTS.as_posix()):
                _fetch(files, path, documents / Path(path).relative_to(DOCUMENTS))
            _fetch(files, (CALIBRATION_SET / MANIFEST).as_posix(), chosen / MANIFEST)
            state = load_state(documents, chosen)
        except (DvcException, OSError, DamagedArtifactError) as error:
            raise InputError(
                f"the calibration data of {revision} is not in DVC's cache or cannot be fetched "
                f"({_line(error)}): run `dvc fetch` with that revision checked out, or `dvc push` "
                "where it was made"
            ) from None
        yield state, commit


def _check_committed(files: DVCFileSystem, revision: str) -> None:
    """Check that the revision's dvc.lock is there and knows the calibration data."""
    if not files.exists(DVC_LOCK.as_posix()):
        raise InputError(
            f"{revision} has no {DVC_LOCK}, so it says nothing of calibration data: commit "
            f"{DVC_LOCK} after a run, and give that commit"
        )
    for folder in (DOCUMENTS, CALIBRATION_SET):
        if not files.exists(folder.as_posix()):
            raise InputError(
                f"{DVC_LOCK} of {revision} does not know {folder}: give a commit that was made "
                "after `dvc repro calibration`"
            )


def _fetch(files: DVCFileSystem, path: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    files.get_file(path, str(place))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
