"""Workspace locks, and a record of why the last stage failed.

Two file locks in ``.pruneflow/``; the operating system releases them when their process ends for
any reason:

- ``run.lock``: one run at a time. `pruneflow run` holds it until it ends and passes a token to the
  stages it starts (environment variable ``PRUNEFLOW_RUN``); a stage started on its own, with
  `dvc repro`, acquires the lock itself.
- ``stage.lock``: one stage at a time. A killed run may leave a stage process that is still writing;
  the next stage waits for it instead of writing at the same time.

DVC hides a stage's exit code and message, so a failing stage also writes ``last_error.json``. And
because DVC writes ``dvc.lock`` in place, each stage started by DVC first keeps a copy of it.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
class FailedStage:
    """Why a stage failed: its exit code and the message for the user."""

    stage: str
    exit_code: int
    message: str


def check_workspace() -> None:
    """Check that the current directory is a project folder.

    Raises:
        InputError: there is no ``dvc.yaml``.
    """
    if not Path("dvc.yaml").is_file():
        raise InputError(f"{Path.cwd()} has no dvc.yaml: run this in the project folder")


def check_writable(folder: Path) -> None:
    """Check that a folder, created if missing, and its subfolders are writable.

    Raises:
        InputError: one of them is not.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be created ({error.strerror}): make {folder.absolute().parent} "
            "writable"
        ) from None
    folders = [folder]
    if os.access(folder, os.R_OK):
        folders += [path for path in folder.iterdir() if path.is_dir()]
    for path in folders:
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise InputError(f"{path} cannot be written: make it writable")


@contextmanager
def run_lock() -> Iterator[dict[str, str]]:
    """Lock the workspace for a run; yields the environment variables for its stages.

    A process whose environment has the holder's token belongs to that run and need not acquire it.

    Raises:
        WorkspaceBusyError: another run, or a stage started on its own, holds the lock.
    """
    if _belongs_to_run():
        yield {TOKEN: os.environ[TOKEN]}
        return
    token = secrets.token_hex(16)
    with _held("run", token):
        yield {TOKEN: token}


@contextmanager
def stage_lock(name: str, wait: float = STAGE_WAIT_SECONDS) -> Iterator[None]:
    """Lock the workspace for the stage `name`, and record an error that ends it.

    Waits up to `wait` seconds for a stage process left by a killed run.

    Raises:
        WorkspaceBusyError: another run holds the workspace, or the leftover stage did not end.
    """
    # If this raises, last_error.json belongs to the other run and must not change.
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


def wait_for_leftover_stage(wait: float = STAGE_WAIT_SECONDS) -> None:
    """Wait until no stage is running: a killed run may have left a stage process.

    Raises:
        WorkspaceBusyError: it did not end in time.
    """
    with _only_stage("the run", wait):
        pass


def record_error(stage: str, exit_code: int, message: str) -> None:
    """Record why a stage failed, for the process that started it."""
    write_json(STATE / "last_error.json", asdict(FailedStage(stage, exit_code, message)))


def read_error(folder: Path = Path()) -> FailedStage | None:
    """Return why the last stage failed; None if it did not, or was killed."""
    try:
        text = (folder / STATE / "last_error.json").read_text(encoding="utf-8")
        return FailedStage(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None


def clear_error(folder: Path = Path()) -> None:
    """Delete the record of the last failure; every stage does so when it starts."""
    (folder / STATE / "last_error.json").unlink(missing_ok=True)


@contextmanager
def registry_lock(store: Path | None = None, wait: float = 60.0) -> Iterator[None]:
    """Lock the registry while its aliases are moved.

    With `store`, the registry's database file, it is locked for all workspaces that use it, else
    for this one only.

    Raises:
        WorkspaceBusyError: another promotion or rollback holds the lock for longer than `wait`.
    """
    lock = _lock("registry") if store is None else FileLock(f"{store}.lock", thread_local=False)
    with _acquire(lock, "registry", wait):
        yield


@contextmanager
def _only_stage(name: str, wait: float) -> Iterator[None]:
    if _is_held("stage"):
        print(
            f"{name} waits up to {wait:.0f} s for a stage that an earlier run left running "
            f"({_holder('stage')})",
            file=sys.stderr,
            flush=True,
        )
    with _held("stage", name, wait):
        yield


def _keep_dvc_lock() -> None:
    """Copy dvc.lock, the record of finished stages, if DVC started this stage."""
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


@contextmanager
def _held(name: str, token: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock, and say in a file next to it which process does."""
    with _acquire(_lock(name), name, wait):
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        try:
            write_json(_holder_file(name), {"pid": os.getpid(), "since": since, "token": token})
            yield
        finally:
            _holder_file(name).unlink(missing_ok=True)


def _is_held(name: str) -> bool:
    """Whether a process holds a lock."""
    try:
        with _lock(name).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _acquire(lock: FileLock, name: str, wait: float) -> AbstractContextManager[object]:
    """Acquire a lock; the end of the context releases it."""
    try:
        return lock.acquire(timeout=wait, poll_interval=0.2)
    except Timeout:
        raise WorkspaceBusyError(
            f"another {name} is using this workspace ({_holder(name)}): wait for it or stop it"
        ) from None
    except OSError as error:
        raise InputError(
            f"{lock.lock_file} cannot be written ({error.strerror}): make the project folder "
            "writable"
        ) from None


def _belongs_to_run() -> bool:
    """Whether this process has the token of the run that holds the workspace."""
    token = os.environ.get(TOKEN)
    # A killed run leaves its token behind, but not its lock.
    return bool(token) and token == _read_holder("run").get("token") and _is_held("run")


def _holder_file(name: str) -> Path:
    return STATE / f"{name}.json"


def _read_holder(name: str) -> dict[str, object]:
    """Read who holds a lock, for messages only: the lock itself is a file lock."""
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
