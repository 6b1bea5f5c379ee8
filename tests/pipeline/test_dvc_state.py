"""DVC's own files, truncated by a kill: repaired under DVC's own locks, and only then."""

from pathlib import Path

import pytest
from dvc.lock import make_lock

from pruneflow.workspace import KEPT_DVC_LOCK
from tasks.dvc.repair import repair_dvc_files
from tasks.dvc.repro import StageError, reproduce
from tests.pipeline.toy import Workspace

RWLOCK, LOCK = Path(".dvc/tmp/rwlock"), Path("dvc.lock")


def test_a_list_of_readers_that_was_cut_short_is_removed(workspace: Workspace) -> None:
    assert repair_dvc_files() == []
    RWLOCK.parent.mkdir()
    RWLOCK.write_text('{"write": {"/data')
    with pytest.raises(StageError, match="JSON structure is corrupted"):
        reproduce("calibration", print, {})
    assert repair_dvc_files() == [f"{RWLOCK} was truncated by a kill: removed"]
    assert reproduce("calibration", print, {})
    RWLOCK.write_text("{}")
    assert repair_dvc_files() == [] and RWLOCK.exists()


@pytest.mark.slow
@pytest.mark.parametrize("rest", ["", "schema: '2.0'\nstages:\n  calibration:\n    cmd: 'pyth"])
def test_a_dvc_lock_that_was_cut_short_is_what_it_was_when_the_last_stage_began(
    workspace: Workspace, rest: str
) -> None:
    reproduce("calibration", print, {})
    reproduce("environment", print, {})
    before = LOCK.read_text()
    reproduce("round@r1", print, {})
    LOCK.write_text(rest)
    assert repair_dvc_files() == [
        f"{LOCK} was truncated by a kill: restored from the last stage's copy"
    ]
    assert LOCK.read_text() == before
    assert not reproduce("calibration", print, {})
    assert reproduce("round@r1", print, {})


def test_a_lock_that_was_cut_short_when_it_was_first_written_goes(workspace: Workspace) -> None:
    KEPT_DVC_LOCK.parent.mkdir()
    KEPT_DVC_LOCK.write_text("schema: '2.0'")  # of before somebody deleted dvc.lock
    reproduce("calibration", print, {})
    LOCK.write_text("")
    assert len(repair_dvc_files()) == 1 and not LOCK.exists()
    assert repair_dvc_files() == [] and not LOCK.exists()


def test_what_git_could_not_merge_and_what_has_no_copy_is_left_alone(workspace: Workspace) -> None:
    LOCK.write_text("schema: '2.0'\nstages: [")
    assert repair_dvc_files() == []
    KEPT_DVC_LOCK.parent.mkdir()
    KEPT_DVC_LOCK.write_text("schema: '2.0'")
    LOCK.write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\nstages: [\n")
    assert repair_dvc_files() == [] and LOCK.read_text().startswith("<<<")


@pytest.mark.parametrize(("file", "guard"), [(RWLOCK, "rwlock.lock"), (LOCK, "lock")])
def test_what_somebody_is_writing_now_is_left_alone(
    workspace: Workspace, file: Path, guard: str
) -> None:
    RWLOCK.parent.mkdir()
    KEPT_DVC_LOCK.parent.mkdir(exist_ok=True)
    KEPT_DVC_LOCK.write_text("schema: '2.0'")
    file.touch()
    with make_lock(str(RWLOCK.parent / guard), tmp_dir=str(RWLOCK.parent)):
        assert repair_dvc_files() == [] and file.read_text() == ""
    assert len(repair_dvc_files()) == 1
