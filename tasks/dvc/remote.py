"""Sharing of data and models: `dvc push` to the workspace's remote."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError
from dvc.exceptions import DvcException
from dvc.repo import Repo

from tasks.dvc.repro import DVC, failure_line, run_child
from tasks.dvc.status import record_push


def push(log: Callable[[str], Any]) -> str | None:
    """Push the outputs in dvc.lock to DVC's default remote; returns why it failed, or None."""
    code, output = run_child([*DVC, "push", "--quiet"], log, {})
    if code != 0:
        return failure_line(code, output)
    record_push()
    return None


def probe_remote() -> tuple[str | None, str]:
    """Check that DVC's default remote is writable; returns why not, or None, and its location.

    For a folder, permissions are checked; on any other remote an empty file is created and deleted.
    """
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
    except (DvcException, OSError, BotoCoreError) as error:
        line = " ".join(str(error).split())
        return f"DVC's remote cannot be used ({line}): correct it with `dvc remote`", place
    return None, place
