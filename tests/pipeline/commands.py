"""Commands of the project, run as a user would in the current directory."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import yaml

from flows import cli
from pruneflow.artifacts import sha256_file
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
    """Run `pruneflow ARGUMENTS` in this process, because imports take longer than most commands.

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
    """Run stages in this process, which saves imports, and let DVC record them."""
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
    """Stages in DVC's output that were executed, except `environment`, which always is."""
    names = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    return [name for name in names if name != "environment"]


def outs() -> dict[str, str]:
    """The digest that DVC has of every out that is the same in every run: no clock, no speed."""
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    return {
        out["path"]: out["md5"]
        for name, stage in lock["stages"].items()
        if name not in ("latency", "report")
        for out in stage["outs"]
    }


def leftovers() -> list[Path]:
    """What a killed writer leaves next to the outs."""
    return [path for path in Path("data").rglob(".*") if path.name.endswith((".new", ".old"))]


def git(*arguments: str, folder: Path = Path()) -> None:
    """Run git with a fixed author."""
    author = ["-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True)


def commit(message: str, folder: Path = Path()) -> None:
    """Commit everything in a folder."""
    git("add", "--all", folder=folder)
    git("commit", "--quiet", "--message", message, folder=folder)


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }
