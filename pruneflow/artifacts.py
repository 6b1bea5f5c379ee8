"""Crash-safe files: written to a temporary name, renamed into place, verified when read.

A stage writes to ``.NAME.new`` next to its output ``NAME`` and swaps the two at the end. A
directory cannot be replaced in one system call, so the old one is first moved to ``.NAME.old``. If
the process is killed between the two renames, `repair` restores the old one at the next start.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pruneflow.errors import DamagedArtifactError, InputError

MANIFEST = "manifest.json"
_WRITE_ERRORS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hex sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DamagedArtifactError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedArtifactError(
            f"{path} is missing: run the stage that writes it (`dvc repro`)"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedArtifactError(
            f"{path} is not valid JSON ({error}): delete it and run again"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically: a reader never sees a partial file.

    Raises:
        ValueError: the value contains NaN or infinity, which JSON cannot represent.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with staged_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def staged_file(out: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `out` on success and is removed on failure.

    Raises:
        InputError: `out` cannot be written, or the disk is full.
    """
    temporary = _sibling(out, "new")
    with _writable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(out)
            _sync(out.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def staged_directory(out: Path) -> Iterator[Path]:
    """Yield an empty directory that replaces `out` on success and is removed on failure.

    Raises:
        InputError: `out` cannot be written, or the disk is full.
    """
    temporary, old = _sibling(out, "new"), _sibling(out, "old")
    with _writable(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        repair(out)
        temporary.mkdir()
        try:
            yield temporary
            for path in sorted(temporary.rglob("*")):
                _sync(path)
            if out.exists():
                out.rename(old)
            temporary.rename(out)
            _sync(out.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def repair(out: Path) -> None:
    """Finish or undo an interrupted swap of `out`, and remove its leftovers."""
    new, old = _sibling(out, "new"), _sibling(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in (new, old):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def leftovers(out: Path) -> list[Path]:
    """Return temporary files of `out` that a killed process left and that can be deleted.

    The old version is not listed while `out` itself is missing: `repair` restores it.
    """
    new, old = _sibling(out, "new"), _sibling(out, "old")
    return [path for path in (new, old) if path.exists() and (path == new or out.exists())]


def write_manifest(directory: Path, **facts: Any) -> dict[str, Any]:
    """Write ``manifest.json``: `facts`, and the sha256 of every file in `directory`."""
    files = {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {**facts, "files": files, "digest": sha256_json(files)}
    write_json(directory / MANIFEST, manifest)
    return manifest


def verify_manifest(directory: Path) -> dict[str, Any]:
    """Check every file listed in the manifest of `directory`, and return the manifest.

    Raises:
        DamagedArtifactError: a file is missing or does not match its sha256.
    """
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise DamagedArtifactError(f"{directory / MANIFEST} has no list of files: run again")
    for name, digest in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise DamagedArtifactError(f"{path} is missing: delete {directory} and run again")
        if sha256_file(path) != digest:
            raise DamagedArtifactError(
                f"{path} is damaged (its sha256 does not match the manifest): "
                f"delete {directory} and run again"
            )
    return manifest


def _sibling(out: Path, suffix: str) -> Path:
    return out.with_name(f".{out.name}.{suffix}")


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Report an operating-system error while writing `out` as an `InputError`."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number not in _WRITE_ERRORS:
            raise
        raise InputError(
            f"{out} cannot be written ({os.strerror(number)}): make {out.parent} writable "
            "or free some space"
        ) from None


def _errno(error: Exception) -> int | None:
    """The errno of an error; libraries written in Rust only have it in their message."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def _sync(path: Path) -> None:
    """Flush a file or directory entry to disk before it is renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
