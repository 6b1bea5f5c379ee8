"""Repairs damage that DVC does not: files truncated by a kill, and content changed by a disk.

A kill can truncate a file that DVC writes in place and then rejects. A failing disk can change the
content of a file but not its size and time, by which DVC detects changes.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.lock import LockError, make_lock
from dvc.repo import Repo

from pruneflow.artifacts import staged_file
from pruneflow.errors import InputError
from pruneflow.paths import DVC_LOCK
from pruneflow.workspace import KEPT_DVC_LOCK

_TMP = Path(".dvc/tmp")
SMALL = 16_000_000
"""Bytes up to which files are checked before every run; stages verify larger ones by digest."""


def repair_dvc_files(folder: Path = Path()) -> list[str]:
    """Repair `dvc.lock` and `.dvc/tmp/rwlock` if a kill truncated them.

    `rwlock`, the list of readers and writers, is deleted: its processes have ended. `dvc.lock` is
    restored from the copy that the last stage made when it started; a file with git's conflict
    markers is left alone. DVC's own locks are held, so that no live process is writing.

    Args:
        folder: the workspace.

    Returns:
        One line per repaired file.
    """
    lines = []
    rwlock, lock = folder / _TMP / "rwlock", folder / DVC_LOCK
    if not _is_json(rwlock):
        with _guarded(folder, "rwlock.lock") as alone:
            if alone and not _is_json(rwlock):
                rwlock.unlink()
                lines.append(f"{rwlock} was truncated by a kill: removed")
    if _is_truncated(lock):
        with _guarded(folder, "lock") as alone:
            if alone and _is_truncated(lock) and _put_back(lock, folder / KEPT_DVC_LOCK):
                lines.append(f"{lock} was truncated by a kill: restored from the last stage's copy")
    return lines


def touch_damaged_files() -> list[str]:
    """Update the time of small results that differ from `dvc.lock`, so that DVC notices them.

    Returns:
        One line per file; DVC then restores it from its cache or runs its stage again.

    Raises:
        InputError: a file cannot be read or its time cannot be set.
    """
    lines = []
    with Repo() as repo:
        outs = [out for stage in repo.index.stages if stage.cmd for out in stage.outs]
        expected = {file: md5 for out in outs for file, md5 in _files_of(out)}
    for file, md5 in expected.items():
        try:
            if file.stat().st_size > SMALL or _md5(file) == md5:
                continue
            os.utime(file)
        except FileNotFoundError:
            continue  # DVC notices a missing file
        except OSError as error:
            raise InputError(
                f"{file} is damaged or cannot be read ({error.strerror}): delete it"
            ) from None
        lines.append(f"{file} differs from {DVC_LOCK}: DVC restores it or runs its stage again")
    return lines


def _files_of(out: Any) -> Iterator[tuple[Path, str]]:
    """Files of one of DVC's outs and their digests, as recorded in dvc.lock."""
    place = Path(out.fs_path)
    if not out.hash_info or not place.is_relative_to(Path.cwd()):
        return
    place = place.relative_to(Path.cwd())
    if not out.is_dir_checksum:
        yield place, out.hash_info.value
        return
    try:
        listed = out.get_obj()
    except (OSError, ValueError):
        return  # the cache no longer has the list of files
    for key, _, found in listed or ():
        yield place.joinpath(*key), found.value


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _put_back(lock: Path, kept: Path) -> bool:
    if kept.is_file():
        with staged_file(lock) as temporary:
            temporary.write_bytes(kept.read_bytes())
        return True
    if lock.stat().st_size == 0:
        lock.unlink()  # the first stage had no dvc.lock to copy
        return True
    return False


@contextmanager
def _guarded(folder: Path, name: str) -> Iterator[bool]:
    """Hold one of DVC's locks; yields whether it was free."""
    (folder / _TMP).mkdir(exist_ok=True)  # DVC creates it on first use
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


def _is_truncated(file: Path) -> bool:
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        return False  # no run yet, or deleted to run everything again
    except ValueError:
        return True
    except yaml.YAMLError:
        return "<<<<<<<" not in text
    return not (isinstance(content, dict) and "schema" in content)
