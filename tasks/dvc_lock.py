"""What a kill may leave of DVC's list of readers and writers: half a file, which DVC refuses."""

import json
from pathlib import Path

TMP = Path(".dvc/tmp")


def mend_lock(folder: Path = Path()) -> bool:
    """Remove `.dvc/tmp/rwlock` where it is cut short; returns whether it was.

    DVC writes it in place and, killed in between, never reads it again. Nobody alive is half way
    through while DVC's own guard of the file is ours, and what the dead have written in it counts
    for nothing.

    Args:
        folder: the workspace.
    """
    from dvc.lock import LockError, make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    file = folder / TMP / RWLOCK_FILE
    if _is_whole(file):
        return False
    try:
        with make_lock(str(folder / TMP / RWLOCK_LOCK), tmp_dir=str(folder / TMP)):
            if _is_whole(file):
                return False
            file.unlink()
            return True
    except LockError:
        return False  # somebody is writing it now


def _is_whole(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True
