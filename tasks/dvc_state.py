"""What a kill may leave of DVC's own files: it writes them in place, and refuses half of one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruneflow.artifacts import staged_file
from pruneflow.paths import DVC_LOCK
from pruneflow.workspace import KEPT_DVC_LOCK

_TMP = Path(".dvc/tmp")


def mend_dvc(folder: Path = Path()) -> list[str]:
    """Mend `dvc.lock` and `.dvc/tmp/rwlock` where a killed DVC left half of them.

    The list of readers and writers is removed: what the dead have written in it counts for nothing.
    `dvc.lock` becomes what it was when the last stage began; one that git could not merge is no
    matter of ours. Only under DVC's own locks: nobody alive is half way through.

    Args:
        folder: the workspace.

    Returns:
        A line about each file that was mended.
    """
    said = []
    rwlock, lock = folder / _TMP / "rwlock", folder / DVC_LOCK
    if not _is_json(rwlock):
        with _guarded(folder, "rwlock.lock") as alone:
            if alone and not _is_json(rwlock):
                rwlock.unlink()
                said.append(f"{rwlock} was cut short by a kill: removed")
    if _is_cut_short(lock):
        with _guarded(folder, "lock") as alone:
            if alone and _is_cut_short(lock) and _put_back(lock, folder / KEPT_DVC_LOCK):
                said.append(f"{lock} was cut short by a kill: as it was when the last stage began")
    return said


def _put_back(lock: Path, kept: Path) -> bool:
    if kept.is_file():
        with staged_file(lock) as temporary:
            temporary.write_bytes(kept.read_bytes())
        return True
    if lock.stat().st_size == 0:
        lock.unlink()  # there was none
        return True
    return False


@contextmanager
def _guarded(folder: Path, name: str) -> Iterator[bool]:
    """Hold one of DVC's locks; yields whether that was possible."""
    from dvc.lock import LockError, make_lock

    (folder / _TMP).mkdir(exist_ok=True)  # DVC makes it when it first needs it
    guard = make_lock(str(folder / _TMP / name), tmp_dir=str(folder / _TMP))
    try:
        guard.lock()
    except LockError:
        yield False
        return
    try:
        yield True
    finally:
        guard.unlock()


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def _is_cut_short(file: Path) -> bool:
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        return False  # nothing has run here, or somebody wants all of it again
    except ValueError:
        return True
    except yaml.YAMLError:
        return "<<<<<<<" not in text
    return not (isinstance(content, dict) and "schema" in content)
