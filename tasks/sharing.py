"""What a team shares of a run: data and models, by `dvc push` to the workspace's remote."""

import sys
from collections.abc import Callable
from typing import Any

from tasks.stages import run_child


def push(log: Callable[[str], Any]) -> str | None:
    """Push what dvc.lock names to DVC's default remote; returns why it failed, or None."""
    code, said = run_child([sys.executable, "-m", "dvc", "push", "--quiet"], log, {})
    if code == 0:
        return None
    errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
    return " ".join(errors[-1].split()) if errors else f"dvc push ended with exit code {code}"
