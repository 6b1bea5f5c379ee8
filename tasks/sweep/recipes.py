"""Run the stages of one recipe of a sweep: `dvc repro` as a child, in the recipe's workspace."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from pruneflow.environment import STAGE
from pruneflow.errors import InputError, PruneflowError
from pruneflow.workspace import STATE, clear_error, read_error
from tasks.dvc.repair import mend_dvc
from tasks.dvc.repro import StageError, end_session, failed, last_words, run_child

LOG = Path("repro.log")  # in the recipe's workspace: all that DVC and the stages said

_SESSION = STATE / "session"
_STOP = STATE / "stop"
_RUNNING = re.compile(r"Running stage '(.+)':")


class RecipeStopped(StageError):
    """The sweep was interrupted."""


@task(name="recipe", task_run_name="{name}: {part}", cache_policy=NO_CACHE)
def run_recipe(
    name: str, folder: Path, part: str, targets: list[str], environment: dict[str, str]
) -> State:
    """Run stages of a recipe, as far as anything they depend on has changed.

    Args:
        name: of the recipe.
        folder: its workspace.
        part: what these stages are of it, for people.
        targets: the stages, as DVC addresses them; those before them are run, too.
        environment: added to the child's environment.

    Returns:
        A Completed state; or a Failed state whose message is one line for the user.
    """
    logger = get_run_logger()
    started = time.monotonic()

    def announce(stage: str) -> None:
        logger.info(f"{name}: {stage}")

    try:
        executed = reproduce_recipe(folder, targets, announce, environment)
    except RecipeStopped as error:
        return failed(error)
    except PruneflowError as error:
        logger.info(f"{name}: failed: {error}")
        return failed(error)
    done = f"done in {time.monotonic() - started:.0f} s" if executed else "nothing to do"
    logger.info(f"{name}: {part}: {done}")
    return Completed(message=done)


def reproduce_recipe(
    folder: Path, targets: list[str], announce: Callable[[str], Any], environment: dict[str, str]
) -> int:
    """Run `dvc repro TARGETS` in a recipe's workspace; returns how many stages were executed.

    Args:
        folder: the workspace.
        targets: the stages.
        announce: is told the name of each stage that starts.
        environment: added to the child's environment.

    Raises:
        InputError: a stage named what is wrong with its input.
        RecipeStopped: the sweep was interrupted.
        StageError: a stage failed in another way.
    """
    clear_error(folder)
    executed = 0
    with (folder / LOG).open("a", encoding="utf-8") as log:

        def hear(line: str) -> None:
            nonlocal executed
            print(line, file=log, flush=True)
            if (running := _RUNNING.match(line)) and running[1] != STAGE:
                executed += 1
                announce(running[1])

        def started(session: int) -> None:
            (folder / STATE).mkdir(exist_ok=True)
            (folder / _SESSION).write_text(str(session))
            # In this order: either we see the word to stop, or who gave it sees the session.
            if (folder / _STOP).exists():
                raise RecipeStopped("the sweep was interrupted")

        command = [sys.executable, "-m", "dvc", "repro", *targets]
        code, said = run_child(command, hear, environment, folder, started)
    (folder / _SESSION).unlink()
    if code == 0:
        return executed
    if (folder / _STOP).exists():
        raise RecipeStopped("the sweep was interrupted")
    recorded = read_error(folder)
    if recorded is None:
        raise StageError(f"{last_words(code, said)} (see {folder / LOG})")
    kind = InputError if recorded.exit_code == InputError.exit_code else StageError
    raise kind(recorded.message)


def clear_recipes(folders: Iterable[Path]) -> None:
    """Make workspaces ready to run in: what a killed sweep has left behind there is ended."""
    for folder in folders:
        (folder / _STOP).unlink(missing_ok=True)
        _end(folder)
        mend_dvc(folder)


def stop_recipes(folders: Sequence[Path]) -> None:
    """End what is at work in the workspaces, and let no more begin: tasks may still wait."""
    for folder in folders:
        (folder / STATE).mkdir(exist_ok=True)
        (folder / _STOP).touch()
    for folder in folders:
        _end(folder)


def _end(folder: Path) -> None:
    """End the session that was started last in a workspace, if it is still there."""
    try:
        session = int((folder / _SESSION).read_text())
        # After a kill the id may be another process's by now.
        ours = Path(f"/proc/{session}/cwd").samefile(folder)
    except (OSError, ValueError):
        return
    if ours:
        end_session(session)


def beside(others: int) -> dict[str, str]:
    """Return the environment of a stage that shares the machine with `others`.

    Threads that wait for others of their process sleep, so that they take nothing from the other
    processes. Their number stays as it is: sums in another order would be another model.
    """
    return {} if not others or "OMP_WAIT_POLICY" in os.environ else {"OMP_WAIT_POLICY": "PASSIVE"}
