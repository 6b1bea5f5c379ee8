"""Locks are the operating system's; the errors of stages reach the runner."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pruneflow.errors import InputError, WorkspaceBusyError
from pruneflow.workspace import (
    STATE,
    TOKEN,
    check_workspace,
    read_error,
    record_error,
    run_lock,
    stage_lock,
)
from tests.conftest import ROOT

HOLD = """
import time
from pruneflow.workspace import _only_stage, run_lock, stage_lock
with {lock}:
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TOKEN, raising=False)


@pytest.fixture
def holder(request: pytest.FixtureRequest):
    """A process that holds a lock, e.g. ``run_lock()``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(lock=request.param)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("holder", ["run_lock()"], indirect=True)
def test_a_second_run_is_refused_and_told_who_is_at_work(holder: subprocess.Popen[str]) -> None:
    with pytest.raises(WorkspaceBusyError, match=f"another run .*pid {holder.pid}, since"):
        run_lock().__enter__()


@pytest.mark.parametrize("holder", ["run_lock()", "stage_lock('model')"], indirect=True)
def test_a_killed_holder_leaves_no_lock_behind(holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock() as environment, pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN, environment[TOKEN])
        with stage_lock("model", wait=1):
            assert environment[TOKEN] in (STATE / "run.json").read_text()


@pytest.mark.parametrize("holder", ["run_lock()"], indirect=True)
def test_a_stage_started_alone_is_refused_while_a_run_is_at_work(
    holder: subprocess.Popen[str],
) -> None:
    record_error("other", 2, "of the run")
    with pytest.raises(WorkspaceBusyError), stage_lock("model"):
        pass
    assert read_error() is not None, "a refused stage must not touch what belongs to the run"


def test_a_stage_with_the_token_of_the_run_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_lock() as environment:
        monkeypatch.setenv(TOKEN, environment[TOKEN])
        with stage_lock("model"):
            assert environment[TOKEN] in (STATE / "run.json").read_text()


def test_a_token_of_a_run_that_ended_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_lock() as old:
        pass
    with run_lock():
        monkeypatch.setenv(TOKEN, old[TOKEN])
        with pytest.raises(WorkspaceBusyError), stage_lock("model"):
            pass


def test_a_stage_alone_holds_the_workspace_against_runs() -> None:
    with stage_lock("model"), pytest.raises(WorkspaceBusyError):
        run_lock().__enter__()


@pytest.mark.parametrize("holder", ["_only_stage('r1', 0)"], indirect=True)
def test_a_stage_waits_for_one_left_behind_then_gives_up(
    holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    busy = pytest.raises(WorkspaceBusyError, match=f"another stage .*pid {holder.pid}")
    with busy, stage_lock("r2", wait=0.5):
        pass
    assert capsys.readouterr().err.count("for a stage that an earlier run left running") == 1
    holder.kill()
    holder.wait()
    with stage_lock("r2", wait=5):
        pass


def test_what_a_stage_dies_of_is_recorded_and_forgotten_when_the_next_starts() -> None:
    with pytest.raises(InputError), stage_lock("documents"):
        raise InputError("domain law has no documents")
    error = read_error()
    assert error is not None
    assert (error.stage, error.exit_code) == ("documents", 2)
    assert error.message == "domain law has no documents"
    with stage_lock("documents"):
        assert read_error() is None


def test_an_unexpected_error_is_recorded_as_one_line_with_exit_code_1() -> None:
    with pytest.raises(ValueError), stage_lock("r1"):
        raise ValueError("two\nlines")
    error = read_error()
    assert error is not None and error.exit_code == 1
    assert "ValueError: two lines" in error.message


def test_a_folder_without_stages_is_no_workspace() -> None:
    with pytest.raises(InputError, match="run this in the project folder"):
        check_workspace()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        run_lock().__enter__()
    tmp_path.chmod(0o700)
