"""Commands of the project, run as a user would in the current directory."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from flows import cli
from pruneflow.stages import run_stage_by_name

PROMOTE_AT_ONCE = str(Path(__file__).with_name("promote_at_once.py"))


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, with this Python's programs first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, **changes}


def run(*command: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
    """Run `python -m COMMAND` to its end."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout,
    )


def pruneflow_here(*arguments: str) -> int:
    """Run `pruneflow ARGUMENTS` in this process, for imports take longer than most commands.

    Returns:
        Its exit code; what it prints goes to this process's streams.
    """
    with patch.dict(os.environ), patch.object(sys, "argv", ["pruneflow", *arguments]):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def make(*stages: str) -> None:
    """Run stages in this process, for imports take longer than stages, and let DVC record them."""
    for name in stages:
        assert run_stage_by_name(name) == 0
    done = run("dvc", "commit", "--force", *stages)
    assert done.returncode == 0, done.stdout + done.stderr


def repro(*arguments: str) -> list[str]:
    """Run `dvc repro` and return the stages that were executed."""
    done = run("dvc", "repro", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return executed(done.stdout)


def executed(said: str) -> list[str]:
    """The stages that DVC says it ran, but for `environment`, which every run looks at."""
    names = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    return [name for name in names if name != "environment"]
