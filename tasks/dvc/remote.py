"""What a team shares of a run: data and models, by `dvc push` to the workspace's remote."""

import importlib.util
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError
from dvc.exceptions import DvcException
from dvc.repo import Repo

from tasks.dvc.repro import last_words, run_child
from tasks.dvc.status import note_push


def push(log: Callable[[str], Any]) -> str | None:
    """Push what dvc.lock names to DVC's default remote; returns why it failed, or None."""
    code, said = run_child([sys.executable, "-m", "dvc", "push", "--quiet"], log, {})
    if code != 0:
        return last_words(code, said)
    note_push()
    return None


def probe_remote() -> tuple[str | None, str]:
    """See whether DVC's default remote can be written; returns why not, or None, and its place.

    A folder is looked at; to any other remote an empty file is written, and removed.
    """
    errors: tuple[type[Exception], ...] = (DvcException, OSError)
    if importlib.util.find_spec("botocore"):
        errors = (*errors, BotoCoreError)
    place = "none"
    try:
        with Repo() as repo:
            store = repo.cloud.get_remote_odb(command="push")
            place = str(store.path)
            if store.fs.protocol == "local":
                folder = next(path for path in (Path(place), *Path(place).parents) if path.exists())
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(f"{folder} cannot be written")
            else:
                file = store.fs.join(place, f".pruneflow-{secrets.token_hex(8)}")
                store.fs.pipe_file(file, b"")
                store.fs.remove(file)
    except errors as error:
        line = " ".join(str(error).split())
        return f"DVC's remote cannot be used ({line}): mend it with `dvc remote`", place
    return None, place
