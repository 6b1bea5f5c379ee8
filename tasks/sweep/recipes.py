"""Run the stages of a recipe: `dvc repro` as a child process in the recipe's workspace."""

import re
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
from tasks.dvc.repro import DVC, StageError, end_session, failed, failure_line, run_child

# Files in the recipe's workspace.
LOG = Path("repro.log")  # output of DVC and the stages
_SESSION = STATE / "session"  # session id of the last child
_STOP = STATE / "stop"  # while it exists, no child is started

_RUNNING = re.compile(r"Running stage '(.+)':")


class RecipeStopped(StageError):
    """The sweep was interrupted."""


@task(name="recipe", task_run_name="{name}: {part}", cache_policy=NO_CACHE)
def run_recipe(name: str, folder: Path, part: str, targets: list[str]) -> State:
    """Run outdated stages of a recipe, and outdated stages that they depend on.

    Args:
        name: the recipe's name.
        folder: its workspace.
        part: what these stages are called in the log.
        targets: the stages as DVC addresses them; all stages when empty.

    Returns:
        A Completed state; or a Failed state whose message is one line for the user.
    """
    logger = get_run_logger()
    started = time.monotonic()
    try:
        executed = _reproduce(folder, targets, lambda stage: logger.info(f"{name}: {stage}"))
    except RecipeStopped as error:
        return failed(error)
    except PruneflowError as error:
        logger.info(f"{name}: failed: {error}")
        return failed(error)
    done = f"done in {time.monotonic() - started:.0f} s" if executed else "nothing to do"
    logger.info(f"{name}: {part}: {done}")
    return Completed(message=done)


def _reproduce(folder: Path, targets: list[str], announce: Callable[[str], Any]) -> int:
    """Run `dvc repro TARGETS` in a recipe's workspace; returns the number of executed stages.

    Raises:
        InputError: a stage reported bad input.
        RecipeStopped: the sweep was interrupted.
        StageError: a stage failed for any other reason.
    """
    clear_error(folder)
    (folder / STATE).mkdir(exist_ok=True)
    executed = 0
    with (folder / LOG).open("a", encoding="utf-8") as log:

        def on_line(line: str) -> None:
            nonlocal executed
            print(line, file=log, flush=True)
            if (running := _RUNNING.match(line)) and running[1] != STAGE:
                executed += 1
                announce(running[1])

        def on_start(session: int) -> None:
            (folder / _SESSION).write_text(str(session))
            # In this order, either we see the stop file, or `stop_recipes` sees the session.
            _check_not_stopped(folder)

        code, output = run_child([*DVC, "repro", *targets], on_line, {}, folder, on_start)
    (folder / _SESSION).unlink()
    if code == 0:
        return executed
    _check_not_stopped(folder)
    recorded = read_error(folder)
    if recorded is None:
        raise StageError(f"{failure_line(code, output)} (see {folder / LOG})")
    kind = InputError if recorded.exit_code == InputError.exit_code else StageError
    raise kind(recorded.message)


def _check_not_stopped(folder: Path) -> None:
    if (folder / _STOP).exists():
        raise RecipeStopped("the sweep was interrupted")


def clear_recipes(folders: Iterable[Path]) -> None:
    """Prepare workspaces for a sweep: end processes that a killed sweep left running in them."""
    for folder in folders:
        (folder / _STOP).unlink(missing_ok=True)
        _end(folder)
        repair_dvc_files(folder)


def stop_recipes(folders: Sequence[Path]) -> None:
    """End the children in the workspaces, and keep waiting tasks from starting new ones."""
    for folder in folders:
        (folder / STATE).mkdir(exist_ok=True)
        (folder / _STOP).touch()
    for folder in folders:
        _end(folder)


def _end(folder: Path) -> None:
    """End the last child of a workspace, if it is still running."""
    try:
        session = int((folder / _SESSION).read_text())
        # After a kill, another process may have got its id.
        ours = Path(f"/proc/{session}/cwd").samefile(folder)
    except (OSError, ValueError):
        return
    if ours:
        end_session(session)
