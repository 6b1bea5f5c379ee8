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
from tasks.dvc.repair import repair_dvc_files
from tasks.dvc.repro import StageError, end_session, failed, failure_line, run_child

LOG = Path("repro.log")  # in the recipe's workspace: the output of DVC and the stages

_SESSION = STATE / "session"  # of the child that was started last
_STOP = STATE / "stop"  # present: start no child
_RUNNING = re.compile(r"Running stage '(.+)':")


class RecipeStopped(StageError):
    """The sweep was interrupted."""


@task(name="recipe", task_run_name="{name}: {part}", cache_policy=NO_CACHE)
def run_recipe(
    name: str, folder: Path, part: str, targets: list[str], environment: dict[str, str]
) -> State:
    """Run stages of a recipe and those before them, where anything they depend on has changed.

    Args:
        name: of the recipe.
        folder: its workspace.
        part: a name for these stages, shown to the user.
        targets: the stages, as DVC addresses them; all stages when empty.
        environment: added to the child's environment.

    Returns:
        A Completed state; or a Failed state whose message is one line for the user.
    """
    logger = get_run_logger()
    started = time.monotonic()
    try:
        executed = _reproduce(
            folder, targets, environment, lambda stage: logger.info(f"{name}: {stage}")
        )
    except RecipeStopped as error:
        return failed(error)
    except PruneflowError as error:
        logger.info(f"{name}: failed: {error}")
        return failed(error)
    done = f"done in {time.monotonic() - started:.0f} s" if executed else "nothing to do"
    logger.info(f"{name}: {part}: {done}")
    return Completed(message=done)


def _reproduce(
    folder: Path,
    targets: list[str],
    environment: dict[str, str],
    announce: Callable[[str], Any],
) -> int:
    """Run `dvc repro TARGETS` in a recipe's workspace; returns how many stages were executed.

    Raises:
        InputError: a stage reported bad input.
        RecipeStopped: the sweep was interrupted.
        StageError: a stage failed in another way.
    """
    clear_error(folder)
    executed = 0
    with (folder / LOG).open("a", encoding="utf-8") as log:

        def on_line(line: str) -> None:
            nonlocal executed
            print(line, file=log, flush=True)
            if (running := _RUNNING.match(line)) and running[1] != STAGE:
                executed += 1
                announce(running[1])

        def on_start(session: int) -> None:
            (folder / STATE).mkdir(exist_ok=True)
            (folder / _SESSION).write_text(str(session))
            # In this order: either we see the stop file, or `stop_recipes` sees the session.
            if (folder / _STOP).exists():
                raise RecipeStopped("the sweep was interrupted")

        command = [sys.executable, "-m", "dvc", "repro", *targets]
        code, output = run_child(command, on_line, environment, folder, on_start)
    (folder / _SESSION).unlink()
    if code == 0:
        return executed
    if (folder / _STOP).exists():
        raise RecipeStopped("the sweep was interrupted")
    recorded = read_error(folder)
    if recorded is None:
        raise StageError(f"{failure_line(code, output)} (see {folder / LOG})")
    kind = InputError if recorded.exit_code == InputError.exit_code else StageError
    raise kind(recorded.message)


def clear_recipes(folders: Iterable[Path]) -> None:
    """Prepare workspaces for a run: end the processes that a killed sweep left running there."""
    for folder in folders:
        (folder / _STOP).unlink(missing_ok=True)
        _end(folder)
        repair_dvc_files(folder)


def stop_recipes(folders: Sequence[Path]) -> None:
    """End what is running in the workspaces, and keep tasks that still wait from starting."""
    for folder in folders:
        (folder / STATE).mkdir(exist_ok=True)
        (folder / _STOP).touch()
    for folder in folders:
        _end(folder)


def _end(folder: Path) -> None:
    """End the session that was started last in a workspace, if it is still running."""
    try:
        session = int((folder / _SESSION).read_text())
        # After a kill the id may belong to another process.
        ours = Path(f"/proc/{session}/cwd").samefile(folder)
    except (OSError, ValueError):
        return
    if ours:
        end_session(session)


def shared_environment(others: int) -> dict[str, str]:
    """Return the environment of a stage that shares the machine with `others`.

    Threads that wait for others of their process sleep instead of spinning. Their number stays the
    same: sums in another order would give another model.
    """
    return {} if not others or "OMP_WAIT_POLICY" in os.environ else {"OMP_WAIT_POLICY": "PASSIVE"}
