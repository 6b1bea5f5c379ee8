"""Files that survive a kill: written beside their final name, renamed, verified on reading.

A stage writes into ``.NAME.new`` next to its output ``NAME`` and swaps at the end. A directory
cannot be replaced in one system call, so the old one is moved to ``.NAME.old`` first; a kill
between the two renames leaves that state, and `repair` undoes it at the next start.
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
_REFUSALS = {
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
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
    """Write JSON with sorted keys through a temporary name, so that a reader sees all or nothing.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON has no word for.
    """
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with staged_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def staged_file(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside `out`; on success it takes its place, else it is removed.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    temporary = _beside(out, "new")
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
    """Yield an empty directory beside `out`; on success it takes its place, else it is removed.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    temporary, old = _beside(out, "new"), _beside(out, "old")
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
    """Finish or undo a swap of `out` that a kill interrupted, and remove what it left over."""
    new, old = _beside(out, "new"), _beside(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)
    for leftover in (new, old):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def leftovers(out: Path) -> list[Path]:
    """Return what a killed writer of `out` left beside it and nothing needs.

    An old state without a present one is not among it: `repair` puts it back.
    """
    new, old = _beside(out, "new"), _beside(out, "old")
    return [path for path in (new, old) if path.exists() and (path == new or out.exists())]


def write_manifest(directory: Path, **facts: Any) -> dict[str, Any]:
    """Write ``manifest.json``: the sha256 of every file below `directory`, and the given facts."""
    files = {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {**facts, "files": files, "digest": sha256_json(files)}
    write_json(directory / MANIFEST, manifest)
    return manifest


def verify_manifest(directory: Path) -> dict[str, Any]:
    """Check every file that the manifest of `directory` lists, and return the manifest.

    Raises:
        DamagedArtifactError: a file is missing or its bytes are not those described.
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
                f"{path} is damaged (its sha256 is not the manifest's): "
                f"delete {directory} and run again"
            )
    return manifest


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f".{out.name}.{suffix}")


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Turn the system's refusal to write `out` into one clear line."""
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number not in _REFUSALS:
            raise
        raise InputError(
            f"{out} cannot be written ({os.strerror(number)}): make {out.parent} writable "
            "or free some space"
        ) from None


def _system_error(error: Exception) -> int | None:
    """The system's number of an error; libraries written in Rust only say it."""
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else None


def _sync(path: Path) -> None:
    """Flush a file or directory entry to disk, so that a rename never outruns its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
