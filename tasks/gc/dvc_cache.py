"""What DVC's cache keeps: which of its entries the workspace and git's commits need."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.output import Output
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree, TreeError
from dvc_objects.errors import ObjectFormatError
from git.exc import GitError
from scmrepo.git import Git

from pruneflow.errors import InputError
from pruneflow.paths import DVC_LOCK, SWEEP
from tasks.gc.removable import Removable


class CacheUncertainError(Exception):
    """Why nobody can say what the cache's entries are needed for, so that all must stay."""


@contextmanager
def repository() -> Iterator[Repo]:
    """Open the workspace for DVC and hold DVC's own lock, as each of its commands does.

    Raises:
        InputError: DVC cannot read the workspace, or another of its commands is at work.
    """
    try:
        with Repo() as repo, repo.lock:
            yield repo
    except LockError:
        raise InputError(
            "another DVC command is at work on this workspace: wait for it or end it"
        ) from None
    except DvcException as error:
        raise InputError(f"DVC cannot read this workspace: {_line(error)}") from None


def known_paths(repo: Repo) -> tuple[set[Path], set[Path]]:
    """Return what the stages write and what they read, as absolute paths."""
    outs = {Path(out.fs_path) for out in repo.index.outs if out.protocol == "local"}
    return outs, {Path(dep.fs_path) for dep in repo.index.deps if dep.protocol == "local"}


def unused_entries(repo: Repo) -> list[Removable]:
    """Find the entries that neither dvc.lock, here, of a sweep's recipe, or of any commit, names.

    Raises:
        CacheUncertainError: what is needed cannot be told, or others may need it.
    """
    cache = repo.cache.local
    folder = Path(cache.path)
    if not folder.is_relative_to(repo.root_dir):
        raise CacheUncertainError(
            f"DVC's cache {folder} lies outside of this folder, and others may use it: "
            "`dvc gc --projects` looks at them all"
        )
    if not DVC_LOCK.is_file():
        raise CacheUncertainError(f"there is no {DVC_LOCK} to say what DVC's cache is needed for")
    needed = _needed(repo) | _of_recipes(cache)
    unused = sorted(set(cache.all()) - needed, key=lambda oid: (not oid.endswith(".dir"), oid))
    # A folder's list goes before its files: without them it would name what is not there.
    return [*_unused_runs(repo, needed), *(_entry(Path(cache.oid_to_path(oid))) for oid in unused)]


def _needed(repo: Repo) -> set[str]:
    """The hashes that the locks of workspace and commits name, files in folders included.

    By DVC's walk over commits (`Repo.brancher`), but not by `Repo.used_objs`: for data that is not
    here it asks the remote or the user.
    """
    needed: set[str] = set()
    place = ""
    try:
        for place in repo.brancher(revs=_commits_with_locks(repo)):
            for out in repo.index.outs:
                needed |= _hashes(out, present=place in ("", "workspace"))
    except (DvcException, TreeError, ObjectFormatError) as error:
        raise CacheUncertainError(
            f"what DVC's cache is needed for cannot be told ({place}: {_line(error)})"
        ) from None
    return needed


def _of_recipes(cache: Any) -> set[str]:
    """The hashes that the locks of a sweep's recipes name: docs/how-to/sweep.md takes one over."""
    needed: set[str] = set()
    for path in sorted(SWEEP.glob(f"*/{DVC_LOCK}")):
        try:
            lock: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            stages = lock["stages"].values()
            named = {str(out["md5"]) for stage in stages for out in stage.get("outs", [])}
        except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            continue  # of a recipe that was killed: its next run begins anew
        needed |= named
        for digest in named:
            if not digest.endswith(".dir") or not cache.exists(digest):
                continue
            try:
                tree = Tree.load(cache, HashInfo("md5", digest))
            except (TreeError, ObjectFormatError):
                continue
            needed |= {str(found.value) for _, _, found in tree}
    return needed


def _hashes(out: Output, present: bool) -> set[str]:
    if not out.use_cache or not out.hash_info:
        return set()
    found = {str(out.hash_info.value)}
    if out.is_dir_checksum:
        files = out.get_obj()
        if files is None and present:
            raise CacheUncertainError(
                f"DVC's cache has no list of the files in {out}, so it cannot be told which are "
                f"needed: `dvc commit {out.stage.addressing}` or `dvc fetch` mends it"
            )
        found |= {str(hash_info.value) for _, _, hash_info in files or ()}
    return found


def _commits_with_locks(repo: Repo) -> list[str]:
    """The commits of every branch, tag and worktree that changed what they say of the cache."""
    if not isinstance(repo.scm, Git):
        return []
    try:
        said = repo.scm.gitpython.repo.git.rev_list(
            "--all", "--full-history", "--", ":(top,glob)**/dvc.lock", ":(top,glob)**/*.dvc"
        )
    except GitError as error:
        raise CacheUncertainError(f"git cannot list its commits ({_line(error)})") from None
    return str(said).split()


def _unused_runs(repo: Repo, needed: set[str]) -> list[Removable]:
    """What DVC's run cache says of earlier runs of stages whose outputs nothing needs.

    It has a folder for each state of a stage's inputs. DVC stumbles over one that is empty.
    """
    folders = sorted(Path(repo.stage_cache.cache_dir).glob("*/*"))
    return [
        Removable.of_folder("run cache", folder)
        for folder in folders
        if folder.is_dir() and not any(_run_outs(path) & needed for path in folder.iterdir())
    ]


def _run_outs(path: Path) -> set[str]:
    try:
        run: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {str(out["md5"]) for out in run["outs"]}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return set()  # a file half written by a killed process


def _entry(path: Path) -> Removable:
    return Removable.of_path("cache entry", path)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
