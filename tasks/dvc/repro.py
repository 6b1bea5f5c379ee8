"""Run one DVC stage as a child process, from a Prefect task.

`dvc repro -s NAME` decides by itself whether the stage has anything to do. It runs in a session of
its own, so that ending the flow ends DVC, the stage and whatever the stage started. DVC removes the
outs of a stage before it runs it: when the stage fails, they are restored from DVC's cache.
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
from dataclasses import dataclass
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

# What DVC says to people who type its commands; everything else it says is shown.
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
# A line of a stage or of DVC that repeats what `last_error.json` says in one line.
_ERROR = ("ERROR: ", "error: ")
# What may pass by itself: another command holds DVC's lock for a moment, a disk or network fails.
_TRANSIENT = (
    "is busy",
    "Unable to acquire lock",
    "Resource temporarily unavailable",
    "Input/output error",
    "Stale file handle",
    "Connection reset",
    "timed out",
)


@dataclass(frozen=True)
class StageOutcome:
    """How a stage ended."""

    name: str
    unchanged: bool
    seconds: float


class StageError(PruneflowError):
    """A stage that failed for another reason than bad input."""


class TransientStageError(StageError):
    """A stage that failed for a reason that may pass by itself."""


def _may_pass(task: Task[..., Any], run: TaskRun, state: State) -> bool:
    """Whether the error that a task returned may pass, so that Prefect runs the task again."""
    if not isinstance(state.data, (StoreBusyError, TransientStageError)):
        return False
    task_run_logger(run, task).info(f"{run.name}: {state.message}; it is run again")
    return True


# What a task is decorated with for Prefect to run it again when its error may pass.
RETRIED: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": 5,
    "retry_condition_fn": _may_pass,
}


def failed(error: PruneflowError, name: str | None = None) -> State:
    """Return the state that reports an error in one line.

    Returned and not raised, because Prefect logs a traceback for what is raised, which tells a
    user nothing. Bad input has a name of its own: running again cannot help.
    """
    named = name or (BAD_INPUT if error.exit_code == InputError.exit_code else "Failed")
    return Failed(name=named, message=str(error), data=error)


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, **RETRIED)
def run_stage(name: str, position: str = "", environment: dict[str, str] | None = None) -> State:
    """Run the DVC stage `name`, unless nothing it depends on has changed.

    Args:
        name: the stage as DVC addresses it, e.g. ``round@r2``.
        position: shown before the name, e.g. ``[7/14]``.
        environment: added to the child's environment, e.g. the token of the run.

    Returns:
        A Completed state holding a `StageOutcome`; or a Failed state whose message is one line for
        the user, named ``BadInput`` when running again cannot help.
    """
    logger = get_run_logger()
    label = f"{position} {name}".strip()
    logger.info(label)
    try:
        outcome = reproduce(name, logger.info, environment or {})
    except PruneflowError as error:
        return failed(error)
    done = "nothing to do" if outcome.unchanged else f"done in {outcome.seconds:.0f} s"
    logger.info(f"{label}: {done}")
    return Completed(message=done, data=outcome)


def reproduce(name: str, log: Callable[[str], Any], environment: dict[str, str]) -> StageOutcome:
    """Run `dvc repro -s NAME` and wait for it to end; when it fails, the earlier outs are restored.

    Raises:
        InputError: the stage named what is wrong with its input.
        TransientStageError: it failed for a reason that may pass.
        StageError: the stage failed in another way.
    """
    started = time.monotonic()
    clear_error()
    code, output = run_child([*DVC, "repro", "-s", name], log, environment)
    if code == 0:
        unchanged = any("didn't change, skipping" in line for line in output)
        return StageOutcome(name, unchanged, time.monotonic() - started)
    # What was never made has nothing in the cache: DVC's complaint about it is no news.
    run_child([*DVC, "checkout", "--quiet", "--force", name], lambda line: None, {})
    recorded = read_error()
    if recorded is not None and recorded.exit_code == InputError.exit_code:
        raise InputError(recorded.message)
    message = recorded.message if recorded is not None else last_words(code, output)
    lines = output if recorded is None else [message]
    transient = any(reason in line for reason in _TRANSIENT for line in lines)
    error = TransientStageError if transient else StageError
    raise error(message if recorded is not None else f"stage {name} failed: {message}")


def last_words(code: int, said: list[str]) -> str:
    """Return in one line why a DVC command failed, from its exit code and what it said."""
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return " ".join(errors[-1].split()) if errors else f"it ended with exit code {code}"


def stage_order() -> list[str]:
    """Return the stages of dvc.yaml by name, every stage after those it depends on.

    Raises:
        InputError: dvc.yaml or what it reads cannot be understood.
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
    """Return the environment of a stage: this Python's programs first, output unbuffered."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **extra}


def run_child(
    command: list[str],
    log: Callable[[str], Any],
    environment: dict[str, str],
    folder: Path | None = None,
    started: Callable[[int], Any] | None = None,
) -> tuple[int, list[str]]:
    """Run a command in its own session; returns its exit code and the lines it said.

    Args:
        command: program and arguments.
        log: is told the lines to show.
        environment: added to the child's.
        folder: where to run it, beside other children: `log` is told every line, and none goes to
            the terminal by itself. None: here, alone.
        started: is told the id of the session.
    """
    said: list[str] = []

    def hear(line: str) -> bool:
        """Keep a line; says whether it is one to show."""
        said.append(line)
        return folder is not None or (bool(line.strip()) and not line.startswith(_CHATTER + _ERROR))

    with _stderr(hear) if folder is None else nullcontext(subprocess.STDOUT) as stderr:
        child = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            env=stage_environment(environment),
            text=True,  # also turns a bar's carriage returns into ends of lines
            errors="replace",
        )
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
            _end_group(child)
            raise
    return code, said


def _clear_line() -> None:
    """Take away a bar that stands on the terminal's last line: it is drawn again below."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _end_group(child: subprocess.Popen[str]) -> None:
    """End every process of the child's session: politely, then for good."""
    end_session(child.pid, child.poll)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def end_session(session: int, reap: Callable[[], Any] = lambda: None) -> None:
    """End every process of a session that `run_child` started; `reap` takes away ended ones."""
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

    On a terminal that is a terminal of the child's own, whose output is copied to ours, lines that
    `hear` rejects left out. Otherwise bars become lines of the log.
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
        except OSError:  # Linux's end of file, once every process has closed its side
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
