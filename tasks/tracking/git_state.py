"""The commit of the code."""

import subprocess


def git_state() -> tuple[str, str]:
    """Return the commit of the code, and whether tracked files differ from it.

    ``dvc.lock`` is ignored: it changes with every run, and every run logs it as a file.

    Returns:
        (commit, ``true`` or ``false``), both ``unknown`` outside a git repository.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    if commit is None or changed is None:
        return "unknown", "unknown"
    return commit, "true" if changed else "false"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
