"""Who is at work on this workspace, and what the last stage died of.

Two locks below ``.pruneflow/``, both held by the operating system, which frees them when their
process ends, however it ends:

- ``run.lock``: one run at a time. `pruneflow run` holds it for life and hands a token down to the
  stages it starts (environment variable ``PRUNEFLOW_RUN``); a stage that somebody starts alone,
  with `dvc repro`, takes it for itself.
- ``stage.lock``: one stage at a time. A run that was killed may leave its stage behind, still
  writing; the next stage waits for that one instead of writing beside it.

DVC hides a stage's exit code and message, so a failing stage leaves ``last_error.json``, too. And
DVC writes ``dvc.lock`` in place, so each stage that it starts keeps a copy of it first.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pruneflow.artifacts import staged_file, write_json
from pruneflow.errors import InputError, PruneflowError, WorkspaceBusyError

STATE = Path(".pruneflow")
KEPT_DVC_LOCK = STATE / "dvc.lock"
FLOW_RUN = STATE / "flow_run.json"  # which flow run is at work here, or was when it was killed
TOKEN = "PRUNEFLOW_RUN"
STAGE_WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class StageError:
    """What a stage died of: the line for the user and the exit code it stands for."""

    stage: str
    exit_code: int
    message: str


def check_workspace() -> None:
    """Make sure that the current directory is a project folder.

    Raises:
        InputError: there is no ``dvc.yaml``.
    """
    if not Path("dvc.yaml").is_file():
        raise InputError(f"{Path.cwd()} has no dvc.yaml: run this in the project folder")


def check_writable(folder: Path) -> None:
    """Make sure that a folder, made when it is not there, and the folders in it can be written.

    Raises:
        InputError: one of them cannot.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror})") from None
    places = [folder]
    if os.access(folder, os.R_OK):
        places += [path for path in folder.iterdir() if path.is_dir()]
    for place in places:
        if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
            raise InputError(f"{place} cannot be written: make it writable")


@contextmanager
def run_lock() -> Iterator[dict[str, str]]:
    """Hold the workspace for a run; yields the environment that its stages need.

    A caller whose own environment carries the holder's token is part of that run: it passes.

    Raises:
        WorkspaceBusyError: another run, or a stage started alone, holds the workspace.
    """
    if _belongs_to_run():
        yield {TOKEN: os.environ[TOKEN]}
        return
    lock = _lock("run")
    _acquire(lock, "run")
    token = secrets.token_hex(16)
    try:
        _write_holder("run", token)
        yield {TOKEN: token}
    finally:
        _holder_file("run").unlink(missing_ok=True)
        lock.release()


@contextmanager
def stage_lock(name: str, wait: float = STAGE_WAIT_SECONDS) -> Iterator[None]:
    """Hold the workspace for the stage `name`, and record what it dies of.

    Args:
        name: the stage, for messages and for ``last_error.json``.
        wait: seconds to wait for a stage that a killed run has left behind.

    Raises:
        WorkspaceBusyError: another run is at work, or the stage left behind did not end in time.
    """
    # Refused here, it must not touch last_error.json: that file is the other run's.
    with run_lock():
        clear_error()
        try:
            with _only_stage(name, wait):
                _keep_dvc_lock()
                yield
        except PruneflowError as error:
            record_error(name, error.exit_code, str(error))
            raise
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            record_error(name, 1, f"stage {name} failed: {line} (see the traceback above)")
            raise


def wait_for_stage_left_behind(wait: float = STAGE_WAIT_SECONDS) -> None:
    """Wait until no stage is at work: a run that was killed may have left its stage behind.

    Raises:
        WorkspaceBusyError: it did not end in time.
    """
    with _only_stage("the run", wait):
        pass


def record_error(stage: str, exit_code: int, message: str) -> None:
    """Leave what a stage died of for the process that started it."""
    write_json(STATE / "last_error.json", asdict(StageError(stage, exit_code, message)))


def read_error(folder: Path = Path()) -> StageError | None:
    """Return what the last stage died of; None when it did not, or died without a word."""
    try:
        values = json.loads((folder / STATE / "last_error.json").read_text(encoding="utf-8"))
        return StageError(str(values["stage"]), int(values["exit_code"]), str(values["message"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def clear_error(folder: Path = Path()) -> None:
    """Forget what the last stage died of; done whenever a stage starts."""
    (folder / STATE / "last_error.json").unlink(missing_ok=True)


@contextmanager
def registry_lock(store: Path | None = None, wait: float = 60.0) -> Iterator[None]:
    """Hold the registry's aliases while they are moved.

    Args:
        store: the file of the registry, if it is one: whoever uses it takes turns with us. None:
            only this workspace does.
        wait: in seconds, for others.

    Raises:
        WorkspaceBusyError: another promotion or rollback holds them for longer than `wait` seconds.
    """
    lock = _lock("registry") if store is None else FileLock(f"{store}.lock", thread_local=False)
    _acquire(lock, "registry", wait)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _only_stage(name: str, wait: float) -> Iterator[None]:
    lock = _lock("stage")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"{name} waits for a stage left behind by a run that ended ({_holder('stage')}), "
            f"{wait:.0f} s at most",
            file=sys.stderr,
            flush=True,
        )
        _acquire(lock, "stage", wait)
    try:
        _write_holder("stage", name)
        yield
    finally:
        _holder_file("stage").unlink(missing_ok=True)
        lock.release()


def _keep_dvc_lock() -> None:
    """Copy dvc.lock, which says what is finished, if this stage was started by DVC, who read it."""
    if "DVC_STAGE" not in os.environ:
        return
    if not Path("dvc.lock").is_file():
        KEPT_DVC_LOCK.unlink(missing_ok=True)
        return
    with staged_file(KEPT_DVC_LOCK) as temporary:
        temporary.write_bytes(Path("dvc.lock").read_bytes())


def _lock(name: str) -> FileLock:
    try:
        STATE.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{STATE.absolute()} cannot be written ({error.strerror}): make the project folder "
            "writable"
        ) from None
    return FileLock(STATE / f"{name}.lock", thread_local=False)


def _acquire(lock: FileLock, name: str, wait: float = 0.0) -> None:
    try:
        lock.acquire(timeout=wait, poll_interval=0.2)
    except Timeout:
        raise WorkspaceBusyError(
            f"another {name} is at work on this workspace ({_holder(name)}): wait for it or end it"
        ) from None
    except OSError as error:
        raise InputError(
            f"{lock.lock_file} cannot be written ({error.strerror}): make the project folder "
            "writable"
        ) from None


def _belongs_to_run() -> bool:
    """Whether this process carries the token of the run that holds the workspace now."""
    token = os.environ.get(TOKEN)
    if not token or token != _read_holder("run").get("token"):
        return False
    lock = _lock("run")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    # The run whose token we carry is gone.
    lock.release()
    return False


def _holder_file(name: str) -> Path:
    return STATE / f"{name}.json"


def _write_holder(name: str, token: str) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(_holder_file(name), {"pid": os.getpid(), "since": since, "token": token})


def _read_holder(name: str) -> dict[str, object]:
    """Read who holds a lock: information only, the lock itself is the operating system's."""
    try:
        values = json.loads(_holder_file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _holder(name: str) -> str:
    holder = _read_holder(name)
    if not holder:
        return "holder unknown"
    return f"pid {holder.get('pid')}, since {holder.get('since')}"
