"""Items that `pruneflow gc` can remove, with their sizes."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

Kind = Literal["version", "logged model", "deleted run", "round", "leftover", "cache entry"]


@dataclass(frozen=True)
class Removable:
    """An item that is no longer needed; equal to another one of the same kind, name and size.

    Attributes:
        kind: what it is.
        name: identifies it within its kind.
        size: in bytes.
        remove: removes it; if it is killed, the next gc removes the rest.
    """

    kind: Kind
    name: str
    size: int
    remove: Callable[[], None] = field(repr=False, compare=False)

    @classmethod
    def of_path(cls, kind: Kind, path: Path) -> Self:
        """Return a file or folder of the workspace."""
        return cls(kind, path.as_posix(), size_of(path), lambda: remove_path(path))

    @classmethod
    def of_folder(cls, kind: Kind, path: Path) -> Self:
        """Return a folder that is renamed first, so that a kill leaves no incomplete folder."""

        def remove() -> None:
            old = path.with_name(f".{path.name}.old")
            remove_path(old)
            remove_path(path.rename(old))

        return cls(kind, path.as_posix(), size_of(path), remove)


def size_of(path: Path) -> int:
    """Return the size of a file or of all files below a folder, in bytes; follows no links."""
    if path.is_dir() and not path.is_symlink():
        return sum(size_of(each) for each in path.iterdir())
    return path.lstat().st_size


def remove_path(path: Path) -> None:
    """Remove a file, link or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
