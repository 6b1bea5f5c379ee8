"""Commands of the project, run as a user would in the current directory."""

import os
import subprocess
import sys
from pathlib import Path


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


def repro(*arguments: str) -> list[str]:
    """Run `dvc repro` and return the stages that were executed."""
    done = run("dvc", "repro", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return executed(done.stdout)


def executed(said: str) -> list[str]:
    """The stages that DVC says it ran, but for `environment`, which every run looks at."""
    names = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    return [name for name in names if name != "environment"]
