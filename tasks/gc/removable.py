"""What `pruneflow gc` may remove, and how much that is."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

Kind = Literal[
    "version", "logged model", "deleted run", "round", "leftover", "run cache", "cache entry"
]


@dataclass(frozen=True)
class Removable:
    """Something that nothing needs; two are equal when they are the same thing in the same state.

    Attributes:
        kind: what it is.
        name: which one of its kind.
        size: bytes.
        remove: takes it away; what a kill leaves of it is found, and removed, the next time.
    """

    kind: Kind
    name: str
    size: int
    remove: Callable[[], None] = field(repr=False, compare=False)

    @classmethod
    def of_path(cls, kind: Kind, path: Path) -> Self:
        """A file or folder of the workspace."""
        return cls(kind, path.as_posix(), size_of(path), lambda: remove_path(path))

    @classmethod
    def of_folder(cls, kind: Kind, path: Path) -> Self:
        """A folder whose name others look for: a kill must not leave half of it there."""

        def remove() -> None:
            gone = path.with_name(f".{path.name}.old")
            remove_path(gone)
            remove_path(path.rename(gone))

        return cls(kind, path.as_posix(), size_of(path), remove)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(each) for each in path.iterdir())
    return path.lstat().st_size


def remove_path(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing happens when it is gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
