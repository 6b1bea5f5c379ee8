"""Run one DVC stage as a child process, from a Prefect task.

DVC runs in its own session, so that ending the flow also ends the stage and its children. It
removes the outs of a stage before running it; if the stage fails, they are restored from its cache.
"""

import codecs
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging.loggers import task_run_logger
from prefect.states import Completed, Failed

from pruneflow.errors import InputError, PruneflowError, StoreBusyError
from pruneflow.workspace import clear_error, read_error

BAD_INPUT = "BadInput"
GRACE_SECONDS = 10.0
DVC = (sys.executable, "-m", "dvc")

# Beginnings of lines that DVC prints for interactive use; all other lines are shown.
_CHATTER = (
    "To track the changes with git",
    "To enable auto staging",
    "Use `dvc push`",
    "Generating lock file",
    "Updating lock file",
    "Data and pipelines are up to date",
    "Running stage ",
    "Stage ",
    "Verifying data sources",
    "> ",
    "\tgit add",
    "\tdvc config core.autostage",
)
# Lines of a stage or of DVC that repeat the message in `last_error.json`.
_ERROR = ("ERROR: ", "error: ")
# Transient failures: another command holds DVC's lock for a moment, or a disk or network fails.
_TRANSIENT = (
    "is busy",
    "Unable to acquire lock",
    "Resource temporarily unavailable",
    "Input/output error",
    "Stale file handle",
    "Connection reset",
    "timed out",
)


class StageError(PruneflowError):
    """A stage that failed for a reason other than bad input."""


class TransientStageError(StageError):
    """A stage that failed for a transient reason."""


def _is_transient(task: Task[..., Any], run: TaskRun, state: State) -> bool:
    """Whether a task returned a transient error, so that Prefect retries it."""
    if not isinstance(state.data, (StoreBusyError, TransientStageError)):
        return False
    task_run_logger(run, task).info(f"{run.name}: {state.message}; retrying")
    return True


# Arguments of `@task` for Prefect to retry a task that returns a transient error.
RETRIED: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": 5,
    "retry_condition_fn": _is_transient,
}


def failed(error: PruneflowError, name: str | None = None) -> State:
    """Return the state that reports an error in one line.

    A returned state, because Prefect logs a traceback for a raised error. Bad input has its own
    name, because retrying cannot help.
    """
    named = name or (BAD_INPUT if error.exit_code == InputError.exit_code else "Failed")
    return Failed(name=named, message=str(error), data=error)


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, **RETRIED)
def run_stage(name: str, position: str, environment: dict[str, str]) -> State:
    """Run the DVC stage `name` unless it is up to date.

    Args:
        name: DVC's name of the stage, e.g. ``round@r2``.
        position: shown before the name, e.g. ``[7/14]``.
        environment: added to the child's environment, e.g. the token of the run.

    Returns:
        A Completed state holding whether the stage was executed; or a Failed state whose message is
        one line for the user, named ``BadInput`` if retrying cannot help.
    """
    logger = get_run_logger()
    label = f"{position} {name}"
    logger.info(label)
    started = time.monotonic()
    try:
        executed = reproduce(name, logger.info, environment)
    except PruneflowError as error:
        return failed(error)
    done = f"done in {time.monotonic() - started:.0f} s" if executed else "nothing to do"
    logger.info(f"{label}: {done}")
    return Completed(message=done, data=executed)


def reproduce(name: str, log: Callable[[str], Any], environment: dict[str, str]) -> bool:
    """Run `dvc repro -s NAME` and wait for it; if it fails, the earlier outs are restored.

    Returns:
        Whether the stage was executed; False if it was up to date.

    Raises:
        InputError: the stage rejected its input.
        TransientStageError: the stage failed for a transient reason.
        StageError: the stage failed for any other reason.
    """
    clear_error()
    code, output = run_child([*DVC, "repro", "-s", name], log, environment)
    if code == 0:
        return not any("didn't change, skipping" in line for line in output)
    # Outs that were never produced are not in the cache: DVC's error about them is ignored.
    run_child([*DVC, "checkout", "--quiet", "--force", name], lambda line: None, {})
    recorded = read_error()
    if recorded is not None and recorded.exit_code == InputError.exit_code:
        raise InputError(recorded.message)
    message = recorded.message if recorded is not None else failure_line(code, output)
    lines = output if recorded is None else [message]
    transient = any(reason in line for reason in _TRANSIENT for line in lines)
    error = TransientStageError if transient else StageError
    raise error(message if recorded is not None else f"stage {name} failed: {message}")


def failure_line(code: int, output: list[str]) -> str:
    """Return in one line why a DVC command failed, from its exit code and output lines."""
    errors = [line.removeprefix("ERROR: ") for line in output if line.startswith("ERROR: ")]
    return " ".join(errors[-1].split()) if errors else f"it ended with exit code {code}"


def stage_order() -> list[str]:
    """Return the names of the stages in dvc.yaml in topological order.

    Raises:
        InputError: dvc.yaml or a file that it refers to is invalid.
    """
    try:
        with Repo() as repo:
            index = repo.index
            written = {stage: place for place, stage in enumerate(index.stages)}
            # DVC's edges point from a stage to its dependencies.
            order = networkx.lexicographical_topological_sort(
                index.graph.reverse(copy=True), key=written.__getitem__
            )
            return [stage.addressing for stage in order]
    except DvcException as error:
        raise InputError(f"dvc.yaml cannot be used: {' '.join(str(error).split())}") from None


def stage_environment(extra: dict[str, str]) -> dict[str, str]:
    """Return a stage's environment: this Python's programs first on PATH, output unbuffered."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **extra}


def run_child(
    command: list[str],
    log: Callable[[str], Any],
    environment: dict[str, str],
    folder: Path | None = None,
    started: Callable[[int], Any] | None = None,
) -> tuple[int, list[str]]:
    """Run a command in its own session; returns its exit code and output lines.

    Args:
        command: program and arguments.
        log: called with each line to show.
        environment: added to the child's.
        folder: working directory of one of several concurrent children: `log` gets every line, and
            nothing is written to the terminal. None: the current one, the only child.
        started: called with the id of the session.
    """
    lines: list[str] = []

    def hear(line: str) -> bool:
        """Store a line; returns whether to show it."""
        lines.append(line)
        return folder is not None or (bool(line.strip()) and not line.startswith(_CHATTER + _ERROR))

    with (
        _stderr(hear) if folder is None else nullcontext(subprocess.STDOUT) as stderr,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=stage_environment(environment),
            text=True,  # also turns a bar's carriage returns into ends of lines
            errors="replace",
        ) as child,
    ):
        try:
            if started is not None:
                started(child.pid)
            assert child.stdout is not None
            for line in child.stdout:
                if hear(line.rstrip("\n")):
                    _clear_line()
                    log(line.rstrip())
            code = child.wait()
        except BaseException:  # Ctrl-C, a cancelled flow, a time limit
            end_session(child.pid, child.poll)
            raise
    return code, lines


def _clear_line() -> None:
    """Clear a progress bar on the terminal's last line: it is drawn again below."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def end_session(session: int, reap: Callable[[], Any] = lambda: None) -> None:
    """End every process of a session that `run_child` started: SIGTERM, then SIGKILL.

    Args:
        session: its id.
        reap: waits for an ended child of this process, which would otherwise stay as a zombie.
    """
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(session, sign)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline:
            reap()
            try:
                os.killpg(session, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)


@contextmanager
def _stderr(hear: Callable[[str], bool]) -> Iterator[int]:
    """Yield what a child's stderr should be, so that its progress bars stay live on a terminal.

    On a terminal the child gets a pseudo-terminal, whose output is copied to ours without the lines
    that `hear` rejects. Otherwise bars become lines of the log.
    """
    if not sys.stderr.isatty():
        yield subprocess.STDOUT
        return
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    size = shutil.get_terminal_size()
    termios.tcsetwinsize(theirs, (size.lines, size.columns))
    copier = threading.Thread(target=_copy, args=(ours, hear), daemon=True)
    copier.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        copier.join(timeout=GRACE_SECONDS)
        os.close(ours)


def _copy(source: int, hear: Callable[[str], bool]) -> None:
    """Copy a terminal's bytes to stderr: bars at once, lines when they are complete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest, open_line = "", False
    while True:
        try:
            read = os.read(source, 1 << 16)
        except OSError:  # end of file on Linux, when every process has closed its side
            read = b""
        *lines, rest = (rest + decoder.decode(read, final=not read)).split("\n")
        if not read and rest:
            lines.append(rest)
        for line in lines:
            if hear(line) or open_line:
                sys.stderr.write(line + "\n")
            open_line = False
        if "\r" in rest or (open_line and rest):
            sys.stderr.write(rest)
            rest, open_line = "", True
        sys.stderr.flush()
        if not read:
            break
