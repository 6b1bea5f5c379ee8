"""Entries of DVC's cache that neither the workspace, a recipe of a sweep nor a commit needs.

DVC itself determines what is needed, by the function behind `dvc gc` (`Repo.used_objs`). The
command is not used: it opens every commit, at 0.2 s each, where only those that changed a dvc.lock
matter; it asks the remote or the user about data that is not here; and it does not report sizes.
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
    """Why it cannot be determined which entries are needed, so that all must stay."""


@contextmanager
def repository() -> Iterator[Repo]:
    """Open the workspace for DVC and hold DVC's own lock, as each of its commands does.

    Raises:
        InputError: DVC cannot read the workspace, or another of its commands is running.
    """
    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns of every output not made yet
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
    """Find the entries that neither dvc.lock, here, of a sweep's recipe, or of any commit, names.

    Raises:
        CacheUncertainError: it cannot be determined what is needed, or others may need it.
    """
    cache = repo.cache.local
    if not Path(cache.path).is_relative_to(repo.root_dir):
        raise CacheUncertainError(
            f"DVC's cache {cache.path} is outside this folder, and other projects may use it: "
            "`dvc gc --projects` takes them into account"
        )
    if not DVC_LOCK.is_file():
        raise CacheUncertainError(f"there is no {DVC_LOCK} to say what DVC's cache is needed for")
    needed = _needed(repo, _commits_with_locks(repo))
    for recipe in sorted(SWEEP.glob("*/.dvc")):
        with Repo(str(recipe.parent), config=_NO_REMOTE) as workspace:
            needed |= _needed(workspace, [])
    # A folder's list goes before its files: without them it would name what is not there.
    unused = sorted(set(cache.all()) - needed, key=lambda oid: (not oid.endswith(".dir"), oid))
    return [Removable.of_path("cache entry", Path(cache.oid_to_path(oid))) for oid in unused]


def _needed(repo: Repo, commits: Sequence[str]) -> set[str]:
    """The hashes that the locks of a workspace and of commits name, files in folders included.

    A commit's list of files may be missing, as in a clone; then its files are missing as well.
    """
    try:
        for out in repo.index.outs:
            if out.use_cache and out.is_dir_checksum and not out.cache.exists(out.hash_info.value):
                raise CacheUncertainError(
                    f"DVC's cache has no list of the files in {out}: run `dvc commit "
                    f"{out.stage.addressing}` or `dvc fetch` in {repo.root_dir}"
                )
        # By force: do not ask the user about a list that is missing.
        used = repo.used_objs(revs=list(commits), force=True)
    except (DvcException, TreeError, ObjectFormatError) as error:
        raise CacheUncertainError(
            f"what DVC's cache is needed for cannot be determined ({repo.root_dir}: {_line(error)})"
        ) from None
    return {str(found.value) for group in used.values() for found in group}


def _commits_with_locks(repo: Repo) -> list[str]:
    """The commits of every branch, tag and worktree that changed a dvc.lock or *.dvc file."""
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
