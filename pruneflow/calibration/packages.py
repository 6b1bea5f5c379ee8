"""Files of installed packages: found without importing, read only when they are the locked ones."""

import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pruneflow.artifacts import read_json
from pruneflow.errors import DamagedArtifactError, InputError


@dataclass
class Reading:
    """What reading needs from outside, and what it has read.

    Attributes:
        root: the workspace, which `data/text` is relative to.
        lock: sha256 of every package file that may be read; None when a lock is being made.
        package_files: sha256 of every package file read.
        text_files: sha256 of every file below data/text read.
    """

    root: Path
    lock: dict[str, str] | None
    package_files: dict[str, str] = field(default_factory=dict)
    text_files: dict[str, str] = field(default_factory=dict)


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


def read_locked(path: Path, name: str, reading: Reading) -> bytes:
    """Read a package's file after comparing its sha256 with the lock's.

    Raises:
        InputError: the lock has no entry for it, or another sha256.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if reading.lock is not None and reading.lock.get(name) != digest:
        known = name in reading.lock
        problem = "does not have the sha256 in" if known else "has no entry in"
        raise InputError(
            f"{name} {problem} data/sources.lock: look at what changed, then run "
            "`python -m pruneflow lock-sources`"
        )
    reading.package_files[name] = digest
    return content


def load_lock(lock_file: Path) -> dict[str, str]:
    """Read the sha256 of every package file that may be read.

    Raises:
        InputError: the lock is missing or damaged.
    """
    try:
        lock = read_json(lock_file)
        return {str(name): str(digest) for name, digest in lock["files"].items()}
    except (DamagedArtifactError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{lock_file} is missing or damaged: run `python -m pruneflow lock-sources`"
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
