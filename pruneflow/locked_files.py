"""Files of installed packages: found without importing, and verified against the lock file."""

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
    """The content of `data/sources.lock`.

    Attributes:
        files: sha256 of every package file that may be read, by `PACKAGE/PATH`.
        hub: commit of every hub dataset that has no `revision` in the YAML, by hub id.
        python: Python version that sources of kind `python` were locked with; "" when unknown.
    """

    files: dict[str, str] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    python: str = ""


@dataclass
class Reading:
    """Settings for reading sources, and a log of what was read.

    Attributes:
        root: the workspace root, which `data/text` is relative to.
        lock: the lock file; None while one is being written.
        malformed: whether an unreadable record is an error or is skipped.
        max_record_bytes: longer lines, records and text files count as malformed.
        package_files: sha256 of every package file read.
        text_files: sha256 of every file read from data/text.
        hub: commit of every hub dataset read, by hub id.
    """

    root: Path
    lock: Lock | None
    malformed: Literal["error", "skip"] = "error"
    max_record_bytes: int = 16 * 2**20
    package_files: dict[str, str] = field(default_factory=dict)
    text_files: dict[str, str] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)


def package_files(package: str, patterns: list[str]) -> list[tuple[Path, str]]:
    """Find files of an installed package without importing it.

    Returns:
        Pairs of path and `PACKAGE/PATH`, the file's name in the lock.

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
    """Verify a package file against the lock, and log it as read.

    Raises:
        InputError: the lock has no entry for the file, or a different sha256.
    """
    _note(name, sha256_file(path), reading)


def read_locked(path: Path, name: str, reading: Reading) -> bytes:
    """Read a package file after verifying it against the lock.

    Raises:
        InputError: the lock has no entry for the file, or a different sha256.
    """
    content = path.read_bytes()
    _note(name, hashlib.sha256(content).hexdigest(), reading)
    return content


def load_lock(lock_file: Path) -> Lock:
    """Read a lock file; warn if it was written with a different Python version.

    Raises:
        InputError: the lock is missing or damaged.
    """
    lock = read_lock(lock_file)
    if lock.python and lock.python != platform.python_version():
        LOGGER.warning(
            "%s was written with Python %s, this is %s: text of kind `python` may differ "
            "(`pruneflow data refresh` accepts it)",
            lock_file,
            lock.python,
            platform.python_version(),
        )
    return lock


def read_lock(lock_file: Path) -> Lock:
    """Read a lock file, whatever Python version it was written with.

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
    """List the files that match, in a stable order.

    Raises:
        InputError: a pattern has no match, or leaves `root`.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise InputError(f"{pattern} leaves its folder: give a path inside {where}")
        # A name may hold characters that mean something in a pattern: report[1].txt.
        literal = root / pattern
        paths = [literal] if literal.is_file() else root.glob(pattern)
        matches = sorted(path for path in paths if path.is_file() and path.name[0] != ".")
        if not matches:
            raise InputError(f"{pattern} matches no file in {where}: correct it or add the file")
        found.update(dict.fromkeys(matches))
    return list(found)


def _note(name: str, digest: str, reading: Reading) -> None:
    if reading.lock is not None and reading.lock.files.get(name) != digest:
        known = name in reading.lock.files
        problem = "does not have the sha256 in" if known else "has no entry in"
        raise InputError(
            f"{name} {problem} data/sources.lock: check what changed, then run "
            "`pruneflow data refresh`"
        )
    reading.package_files[name] = digest
