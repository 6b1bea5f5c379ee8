"""Files of installed packages: found without importing, read only when they are the locked ones."""

import hashlib
import importlib.util
import logging
import platform
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from pruneflow.artifacts import read_json, sha256_file
from pruneflow.errors import DamagedArtifactError, InputError

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lock:
    """What `data/sources.lock` pins.

    Attributes:
        files: sha256 of every package file that may be read, by `PACKAGE/PATH`.
        hub: commit of every hub dataset that has no `revision` in the YAML, by hub id.
        python: version of the Python whose library and topics were meant; "" when unknown.
    """

    files: dict[str, str] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    python: str = ""


@dataclass(frozen=True)
class Malformed:
    """A line, record or file that was skipped because it cannot be read.

    Attributes:
        source: name of the source.
        place: the file, and the line, record or row.
        reason: `malformed`, or `binary`.
        detail: what is wrong with it.
    """

    source: str
    place: str
    reason: str
    detail: str = ""


@dataclass
class Reading:
    """What reading needs from outside, and what it has read.

    Attributes:
        root: the workspace, which `data/text` is relative to.
        lock: what may be read; None when a lock is being made.
        malformed: whether what cannot be read ends the reading or is skipped.
        max_record_bytes: longer lines, records and text files cannot be read.
        package_files: sha256 of every package file read.
        text_files: sha256 of every file below data/text read.
        hub: commit of every hub dataset read, by hub id.
        malformed_records: what was skipped, in reading order.
    """

    root: Path
    lock: Lock | None
    malformed: Literal["error", "skip"] = "error"
    max_record_bytes: int = 16 * 2**20
    package_files: dict[str, str] = field(default_factory=dict)
    text_files: dict[str, str] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    malformed_records: list[Malformed] = field(default_factory=list)


def package_files(package: str, patterns: list[str]) -> list[tuple[Path, str]]:
    """Find files of an installed package without importing it.

    Returns:
        Pairs of path and `PACKAGE/PATH`, the name that the lock knows the file by.

    Raises:
        InputError: the package is not installed, or a pattern matches nothing.
    """
    spec = importlib.util.find_spec(package) if "." not in package else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed: run `make setup`")
    root = Path(next(iter(spec.submodule_search_locations)))
    paths = expand(root, patterns, f"the package {package}")
    return [(path, f"{package}/{path.relative_to(root).as_posix()}") for path in paths]


def check_locked(path: Path, name: str, reading: Reading) -> None:
    """Compare the sha256 of a package's file with the lock's, and note it as read.

    Raises:
        InputError: the lock has no entry for it, or another sha256.
    """
    _note(name, sha256_file(path), reading)


def read_locked(path: Path, name: str, reading: Reading) -> bytes:
    """Read a whole file of a package after comparing its sha256 with the lock's.

    Raises:
        InputError: the lock has no entry for it, or another sha256.
    """
    content = path.read_bytes()
    _note(name, hashlib.sha256(content).hexdigest(), reading)
    return content


def load_lock(lock_file: Path) -> Lock:
    """Read what may be read; a lock made with another Python is logged as a warning.

    Raises:
        InputError: the lock is missing or damaged.
    """
    lock = read_lock(lock_file)
    if lock.python and lock.python != platform.python_version():
        LOGGER.warning(
            "%s was made with Python %s, this is %s: text of kind `python` may differ "
            "(`pruneflow data refresh` accepts it)",
            lock_file,
            lock.python,
            platform.python_version(),
        )
    return lock


def read_lock(lock_file: Path) -> Lock:
    """Read a lock, whatever this Python is.

    Raises:
        InputError: the lock is missing or damaged.
    """
    try:
        values = read_json(lock_file)
        files, hub = (
            {str(name): str(pin) for name, pin in part.items()}
            for part in (values["files"], values.get("hub", {}))
        )
        return Lock(files, hub, str(values.get("python", "")))
    except (DamagedArtifactError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{lock_file} is missing or damaged: run `pruneflow data refresh`"
        ) from None


def expand(root: Path, patterns: list[str], where: str) -> list[Path]:
    """List the files that match, in a stable order; a pattern without a match is an error."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise InputError(f"{pattern} leaves its folder: give a path inside {where}")
        matches = sorted(
            path for path in root.glob(pattern) if path.is_file() and not path.name.startswith(".")
        )
        if not matches:
            raise InputError(f"{pattern} matches no file in {where}: correct it or add the file")
        found.update(dict.fromkeys(matches))
    return list(found)


def _note(name: str, digest: str, reading: Reading) -> None:
    if reading.lock is not None and reading.lock.files.get(name) != digest:
        known = name in reading.lock.files
        problem = "does not have the sha256 in" if known else "has no entry in"
        raise InputError(
            f"{name} {problem} data/sources.lock: look at what changed, then run "
            "`pruneflow data refresh`"
        )
    reading.package_files[name] = digest
