"""What a team shares of a run: data and models, by `dvc push` to the workspace's remote."""

import sys
from collections.abc import Callable
from typing import Any

from tasks.stages import last_words, run_child


def push(log: Callable[[str], Any]) -> str | None:
    """Push what dvc.lock names to DVC's default remote; returns why it failed, or None."""
    code, said = run_child([sys.executable, "-m", "dvc", "push", "--quiet"], log, {})
    return None if code == 0 else last_words(code, said)
