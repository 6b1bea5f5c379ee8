"""kill -9 at any moment: the next run completes, and ends with the very model it would have had."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pruneflow.artifacts import sha256_file
from pruneflow.workspace import STATE
from tasks.dvc.repair import repair_dvc_files
from tests.pipeline.commands import environment, executed, leftovers, outs, repro, run
from tests.pipeline.tiny import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

# One stage of each kind, and how often it is killed: before, in and after the swap of each folder
# that it writes, before and after that of each file.
SWAPS = {"model": 3, "calibration": 5, "round@r2": 3, "select": 3, "evaluation": 2, "report": 8}
DVC, RUN = ("dvc", "repro"), ("flows.cli", "run")
# The stage to be at work or a later one, how many seconds after it began, whether the command is
# killed alone, so that its stage goes on, and the command.
KILLS = [
    ("model", 0.3, False, DVC),
    ("documents", 2.0, True, RUN),
    ("calibration", 0.1, False, DVC),
    ("baseline", 1.0, True, DVC),
    ("round@r1", 2.0, False, DVC),
    ("round@r2", 2.0, False, RUN),
    ("select", 3.0, False, DVC),
    ("latency", 1.0, True, DVC),
    ("report", 0.1, False, DVC),
]
RUNS = """
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print(*sorted(run.state_name for run in client.read_flow_runs() if run.flow_id))
"""


def files(out: Path) -> list[Path]:
    return [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]


def start_afresh() -> None:
    """Forget everything that was made."""
    for path in ("data/questions", "data/calibration", "data/checkpoints", "data/model"):
        shutil.rmtree(path)
    for path in ("data/reports", ".dvc/cache", ".dvc/tmp", STATE):
        shutil.rmtree(path, ignore_errors=True)
    Path("dvc.lock").unlink()


def at_work() -> str | None:
    """The stage that holds the workspace; what a killed one wrote about itself does not count."""
    try:
        holder = json.loads((STATE / "stage.json").read_text())
        if psutil.Process(holder["pid"]).status() != psutil.STATUS_ZOMBIE:
            return str(holder["token"])
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        pass
    return None


def start(*command: str) -> "subprocess.Popen[str]":
    if command[0] == "dvc":
        repair_dvc_files()  # as a person must; `pruneflow run` does it by itself
    with Path("said.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=log,
            stderr=log,
            text=True,
            # A killed process takes what it has not written yet with it, and stages are counted.
            env=environment(PYTHONUNBUFFERED="1"),
            start_new_session=True,
        )


def kill_in(stages: list[str], delay: float, orphan: bool, *command: str) -> str | None:
    """Start a command and kill it some time after a stage began; returns what was at work.

    Args:
        stages: the first of them to be at work, as in dvc.yaml.
        delay: seconds after the stage began.
        orphan: kill the command alone, so that its stage goes on; else everything at once.
        command: what to start.
    """
    process = start(*command)
    while process.poll() is None and at_work() not in stages:
        time.sleep(0.02)
    deadline = time.monotonic() + delay
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if process.poll() is not None:
        return "ended"  # too soon for us
    hit = at_work()
    killed = [process.pid] if orphan else _session(process.pid)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    started = time.monotonic()
    # An orphan ends by itself, on a busy machine late.
    while _is_held() and time.monotonic() < started + 300:
        time.sleep(0.1)
    # What a killed DVC has locked is free when it has been reaped, which some containers never do.
    while any(map(psutil.pid_exists, killed)) and time.monotonic() < started + 20:
        time.sleep(0.1)
    return hit


def _session(leader: int) -> list[int]:
    """Every process of the command, those in sessions of their own included."""
    try:
        parent = psutil.Process(leader)
        return [leader, *(child.pid for child in parent.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _is_held() -> bool:
    from filelock import FileLock, Timeout

    try:
        with FileLock(STATE / "stage.lock").acquire(timeout=0):
            return False
    except Timeout:
        return True


def test_a_stage_that_is_killed_at_any_swap_ends_with_the_same_bytes(
    finished_pipeline: dict[str, Any],
) -> None:
    made = {path: sha256_file(path) for out in outs() for path in files(Path(out))}
    script = Path(__file__).with_name("killed_stages.py")
    done = subprocess.run(
        [sys.executable, script, *SWAPS], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == SWAPS
    assert {path: sha256_file(path) for out in outs() for path in files(Path(out))} == made
    assert not leftovers()


def test_what_is_killed_ends_with_the_model_of_an_uninterrupted_run(
    finished_pipeline: dict[str, Any],
) -> None:
    gates = {"metric": "block_ratio", "comparison": "at_least", "limit": 0.01, "why": "a test"}
    Path("configs/gates.yaml").write_text(yaml.safe_dump({"run_mode": "enabled", "gates": [gates]}))
    expected = outs()
    start_afresh()
    hits = Counter(
        str(kill_in(STAGES[STAGES.index(stage) :], delay, orphan, *command))
        for stage, delay, orphan, command in KILLS
    )
    done = run("flows.cli", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert outs() == expected
    assert repro() == []
    ran = Counter(executed(Path("said.log").read_text()))
    assert hits["ended"] <= 2 and len(hits) >= len(KILLS) - 3, hits
    assert ran["model"] > 0
    for stage in STAGES:
        # What was done before a kill is not done again: DVC runs a stage once, and once more for
        # each kill in it or between it and the next.
        assert ran[stage] <= 1 + hits[stage] + hits["None"], (stage, ran, hits)
    assert not leftovers()
    assert _states_of_runs() == ["Accepted", "Crashed", "Crashed"]


def _states_of_runs() -> list[str]:
    home = str((STATE / "prefect").absolute())
    states = subprocess.run(
        [sys.executable, "-c", RUNS],
        env=environment(PREFECT_HOME=home),
        capture_output=True,
        text=True,
    )
    assert states.returncode == 0, states.stderr
    return states.stdout.split()
