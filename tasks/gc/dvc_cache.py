"""Entries of DVC's cache that no workspace, sweep recipe or commit needs.

DVC itself determines what is needed, with the function behind `dvc gc` (`Repo.used_objs`). The
command itself opens every commit, at 0.2 s each, although only those that changed a dvc.lock
matter, asks the remote or the user about missing data, and does not report sizes.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc_data.hashfile.tree import TreeError
from dvc_objects.errors import ObjectFormatError
from git.exc import GitError
from scmrepo.git import Git

from pruneflow.errors import InputError
from pruneflow.paths import DVC_LOCK, SWEEP
from tasks.gc.removable import Removable

_NO_REMOTE = {"core": {"remote": ""}}


class CacheUncertainError(Exception):
    """The needed entries cannot be determined, so all must stay."""


@contextmanager
def repository() -> Iterator[Repo]:
    """Open the workspace for DVC and hold DVC's own lock, as each of its commands does.

    Raises:
        InputError: DVC cannot read the workspace, or another of its commands is running.
    """
    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns about every missing output
    try:
        with Repo(config=_NO_REMOTE) as repo, repo.lock:
            yield repo
    except LockError:
        raise InputError(
            "another DVC command is running in this workspace: wait for it or end it"
        ) from None
    except DvcException as error:
        raise InputError(f"DVC cannot read this workspace: {_line(error)}") from None


def known_paths(repo: Repo) -> tuple[set[Path], set[Path]]:
    """Return what the stages write and what they read, as absolute paths."""
    outs = {Path(out.fs_path) for out in repo.index.outs if out.protocol == "local"}
    return outs, {Path(dep.fs_path) for dep in repo.index.deps if dep.protocol == "local"}


def unused_entries(repo: Repo) -> list[Removable]:
    """Find the entries that no dvc.lock of the workspace, a sweep's recipe or a commit names.

    Raises:
        CacheUncertainError: the needed entries cannot be determined, or other projects may need
            some.
    """
    cache = repo.cache.local
    if not Path(cache.path).is_relative_to(repo.root_dir):
        raise CacheUncertainError(
            f"DVC's cache {cache.path} is outside this folder, and other projects may use it: "
            "`dvc gc --projects` takes them into account"
        )
    if not DVC_LOCK.is_file():
        raise CacheUncertainError(f"there is no {DVC_LOCK} to tell which cache entries are needed")
    needed = _needed(repo, _commits_with_locks(repo))
    for recipe in sorted(SWEEP.glob("*/.dvc")):
        with Repo(str(recipe.parent), config=_NO_REMOTE) as workspace:
            needed |= _needed(workspace, [])
    # Remove a folder's list before its files, so that it never names missing files.
    unused = sorted(set(cache.all()) - needed, key=lambda oid: (not oid.endswith(".dir"), oid))
    return [Removable.of_path("cache entry", Path(cache.oid_to_path(oid))) for oid in unused]


def _needed(repo: Repo, commits: Sequence[str]) -> set[str]:
    """Return the hashes that the dvc.lock of a workspace and of commits name, files in folders too.

    The list of a commit's files may be missing, as in a clone; then its files are missing as well.
    """
    try:
        for out in repo.index.outs:
            if out.use_cache and out.is_dir_checksum and not out.cache.exists(out.hash_info.value):
                raise CacheUncertainError(
                    f"DVC's cache has no list of the files in {out}: run `dvc commit "
                    f"{out.stage.addressing}` or `dvc fetch` in {repo.root_dir}"
                )
        # force: do not ask the user about a missing list.
        used = repo.used_objs(revs=list(commits), force=True)
    except (DvcException, TreeError, ObjectFormatError) as error:
        raise CacheUncertainError(
            f"the needed entries of DVC's cache cannot be determined ({repo.root_dir}: "
            f"{_line(error)})"
        ) from None
    return {str(found.value) for group in used.values() for found in group}


def _commits_with_locks(repo: Repo) -> list[str]:
    """Return the commits of any branch, tag or worktree that changed a dvc.lock or *.dvc file."""
    if not isinstance(repo.scm, Git):
        return []
    try:
        output = repo.scm.gitpython.repo.git.rev_list(
            "--all", "--full-history", "--", ":(top,glob)**/dvc.lock", ":(top,glob)**/*.dvc"
        )
    except GitError as error:
        raise CacheUncertainError(f"git cannot list its commits ({_line(error)})") from None
    return str(output).split()


def _line(error: Exception) -> str:
    return " ".join(f"{error} {error.__cause__ or ''}".split())[:200]
