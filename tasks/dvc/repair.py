"""What a kill or a failing disk leaves where DVC looks no closer.

A kill leaves half of a file that DVC writes in place, and then refuses. A disk changes a file and
neither its size nor its time, by which DVC believes to know it.
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
"""Bytes of files looked at before every run; larger ones have digests that readers check."""


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


def doubt_changed_files() -> list[str]:
    """Make DVC look again at small results that are not what `dvc.lock` says.

    Returns:
        A line about each; DVC brings it back from its cache, or its stage makes it anew.

    Raises:
        InputError: one cannot be read, or be marked for DVC.
    """
    said = []
    with Repo() as repo:
        outs = [out for stage in repo.index.stages if stage.cmd for out in stage.outs]
        expected = {file: md5 for out in outs for file, md5 in _files_of(out)}
    for file, md5 in expected.items():
        try:
            if file.stat().st_size > SMALL or _md5(file) == md5:
                continue
            os.utime(file)
        except FileNotFoundError:
            continue  # DVC sees for itself that it is missing
        except OSError as error:
            raise InputError(
                f"{file} is damaged or cannot be read ({error.strerror}): delete it"
            ) from None
        said.append(f"{file} is not what {DVC_LOCK} says: DVC restores it, or its stage makes it")
    return said


def _files_of(out: Any) -> Iterator[tuple[Path, str]]:
    """Files of one of DVC's outs as it was when its stage ended, and their digests."""
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
        return  # the list itself is gone from the cache
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
        lock.unlink()  # there was none
        return True
    return False


@contextmanager
def _guarded(folder: Path, name: str) -> Iterator[bool]:
    """Hold one of DVC's locks; yields whether that was possible."""
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
