"""The walk of DVC's graph, and one DVC stage as a child process."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pruneflow.errors import InputError, WorkspaceBusyError
from pruneflow.settings.pipeline import load_settings
from pruneflow.workspace import TOKEN, run_lock
from tasks.dvc.repro import (
    StageError,
    TransientStageError,
    reproduce,
    run_child,
    stage_order,
)
from tests.pipeline.toy import Workspace
from tests.servers import wait_until

RUN_STAGE = "from tasks.dvc.repro import reproduce; reproduce('round@r1', print, {})"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def run_into(log: Path, workspace: Workspace) -> "subprocess.Popen[bytes]":
    """Start `pruneflow run`. Prefect's server outlives a kill, and would hold a pipe open."""
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run"],
            env=workspace.environment,
            stdout=output,
            stderr=output,
        )


def test_the_order_is_that_of_the_graph_whatever_the_order_in_the_file(
    workspace: Workspace,
) -> None:
    rounds = ["round@r1", "round@r2"]
    assert stage_order() == ["environment", "calibration", *rounds, "select", "report"]


def test_ten_rounds_keep_their_order(workspace: Workspace) -> None:
    names = [f"r{number}" for number in range(1, 12)]
    parents = ["dense", *names]
    rounds = {
        name: {"parent": parents[place], "ratio": 0.05 * (place + 1)}
        for place, name in enumerate(names)
    }
    workspace.set(rounds=rounds, final_round="r11")
    order = stage_order()
    assert [name for name in order if "@" in name] == [f"round@{name}" for name in names]


def test_integer_keys_would_make_no_round_so_settings_refuse_them(workspace: Workspace) -> None:
    file = Path("configs/pipeline.yaml")
    text = file.read_text().replace("  r1:", "  1:").replace("  r2:", "  2:")
    file.write_text(text)
    assert [name for name in stage_order() if "@" in name] == []
    done = workspace.pruneflow("run")
    assert done.returncode == 2
    assert "configs/pipeline.yaml: rounds.1" in done.stderr


def test_a_dvc_file_that_cannot_be_read_is_bad_input(workspace: Workspace) -> None:
    Path("dvc.yaml").write_text("stages: [")
    with pytest.raises(InputError, match=r"dvc.yaml cannot be used"):
        stage_order()


def test_a_stage_runs_once_and_says_its_lines(workspace: Workspace) -> None:
    lines: list[str] = []
    assert reproduce("calibration", lines.append, {})
    assert lines == ["the toy stage calibration says hello", "a bar: 50%", "a bar: 100%"]
    assert not reproduce("calibration", lines.append, {})
    assert workspace.executed() == ["calibration"]


def test_bad_input_of_a_stage_arrives_as_its_own_line(workspace: Workspace) -> None:
    Path("fail-calibration").touch()
    lines: list[str] = []
    with pytest.raises(InputError, match=r"^the toy stage calibration was told to fail: delete"):
        reproduce("calibration", lines.append, {})
    assert lines == []


def test_a_failure_that_may_pass_is_told_from_bad_input(workspace: Workspace) -> None:
    Path("flaky-calibration").touch()
    with pytest.raises(TransientStageError, match="Input/output error"):
        reproduce("calibration", print, {})
    assert reproduce("calibration", print, {})


@pytest.mark.slow
def test_the_earlier_result_survives_a_stage_that_fails(workspace: Workspace) -> None:
    model = Path("data/checkpoints/r1/config.json")
    for name in ("environment", "calibration", "round@r1"):
        reproduce(name, print, {})
    before = model.read_text()
    rounds = {name: each.model_dump() for name, each in load_settings().rounds.items()}
    workspace.set(rounds={**rounds, "r1": {"parent": "dense", "ratio": 0.15}})
    Path("fail-r1").touch()
    with pytest.raises(InputError, match="was told to fail"):
        reproduce("round@r1", print, {})
    assert model.read_text() == before
    Path("fail-r1").unlink()
    assert reproduce("round@r1", print, {})
    assert model.read_text() != before


@pytest.mark.slow
def test_an_upgrade_is_noticed_and_nothing_runs_again_without_one(workspace: Workspace) -> None:
    def run() -> list[str]:
        done = workspace.do("-m", "dvc", "repro", "round@r1")
        assert done.returncode == 0, done.stderr
        return workspace.executed()

    assert run() == ["calibration", "r1"]
    assert run() == []
    (workspace.folder / "torch-9.9+cu.dist-info").mkdir()
    metadata = workspace.folder / "torch-9.9+cu.dist-info/METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9+cu\n")
    assert run() == ["r1"]
    assert run() == []


def test_a_stage_without_its_dependency_says_what_is_missing(workspace: Workspace) -> None:
    with pytest.raises(StageError, match=r"stage select failed: .*data/checkpoints/r2"):
        reproduce("select", print, {})


def test_a_stage_is_part_of_the_run_that_hands_it_the_token(workspace: Workspace) -> None:
    with run_lock() as environment:
        assert environment[TOKEN]
        reproduce("calibration", print, environment)
        assert workspace.do("toy.py", "calibration").returncode == WorkspaceBusyError.exit_code
    assert workspace.executed() == ["calibration"]


class Terminal(io.StringIO):
    """What is shown on a terminal, with what moves its cursor."""

    def isatty(self) -> bool:
        return True


# A line is printed while a bar is drawn; they use separate pipes.
BAR = """
import sys, time
sys.stderr.write("\\rbar: 50%")
sys.stderr.flush()
time.sleep(1)
print("a line", flush=True)
time.sleep(1)
sys.stderr.write("\\rbar: 100%\\n")
"""


def test_on_a_terminal_a_line_takes_the_place_of_a_bar_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    code, _ = run_child([sys.executable, "-c", BAR], lambda line: terminal.write(f"{line}\n"), {})
    assert code == 0
    assert terminal.getvalue() == "\rbar: 50%\r\x1b[Ka line\n\rbar: 100%\n"


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_runner_ends_dvc_the_stage_and_its_children(
    workspace: Workspace, sign: int
) -> None:
    Path("slow-calibration").touch()
    runner = workspace.start("-m", "flows.cli", "run")
    assert wait_until(lambda: Path("pids.json").exists())
    pids = json.loads(Path("pids.json").read_text())
    assert all(alive(pid) for pid in pids)
    runner.send_signal(sign)
    _, errors = runner.communicate(timeout=60)
    assert wait_until(lambda: not any(alive(pid) for pid in pids), 20)
    assert runner.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted: run it again to continue where it stopped" in errors
    with run_lock():
        pass


@pytest.mark.slow
def test_a_stage_whose_starter_was_killed_still_holds_the_workspace(workspace: Workspace) -> None:
    Path("slow-r1").touch()
    for name in ("environment", "calibration"):
        reproduce(name, print, {})
    runner = workspace.start("-c", RUN_STAGE)
    assert wait_until(lambda: Path("pids.json").exists())
    pids = json.loads(Path("pids.json").read_text())
    try:
        runner.kill()
        runner.communicate()
        assert alive(pids[0])
        Path("slow-r1").unlink()
        successor = subprocess.Popen(
            ["python", "toy.py", "calibration"],
            env=workspace.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Nobody handed it a token, so it holds run.lock itself: others are refused by its pid.
        _, errors = successor.communicate(timeout=60)
        assert f"pid {pids[0]}" in errors and successor.returncode == 2
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_after_kill_9_the_next_run_waits_for_the_stage_left_behind_and_completes(
    workspace: Workspace,
) -> None:
    Path("slow-r1").touch()
    killed = run_into(Path("killed.log"), workspace)
    assert wait_until(lambda: Path("pids.json").exists())
    stage, *_ = json.loads(Path("pids.json").read_text())
    left_behind = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    try:
        assert alive(stage)
        Path("slow-r1").unlink()
        said = Path("next.log")
        following = run_into(said, workspace)
        assert wait_until(lambda: "an earlier run left running" in said.read_text(), 120)
        assert following.poll() is None
        os.kill(stage, signal.SIGKILL)
        assert following.wait(timeout=300) == 0, said.read_text()
        assert workspace.executed() == ["calibration", "r1", "r1", "r2", "select", "report"]
    finally:
        for process in left_behind:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
