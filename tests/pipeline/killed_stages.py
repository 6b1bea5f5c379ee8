"""Kill stages at every swap of what they write: `python killed_stages.py STAGE...`.

Prints, as JSON, how often each stage was killed before it completed. Stages run in forks of this
process, because imports take longer than a tiny stage.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruneflow.stages import run_stage_by_name

# What stages import when they run.
FOR_STAGES = ("great_expectations", "transformers.models.llama.modeling_llama")


def main(stages: list[str]) -> None:
    for name in FOR_STAGES:
        importlib.import_module(name)
    print(json.dumps({stage: kills(stage) for stage in stages}))


def kills(stage: str) -> int:
    """Start a stage again after each kill, one rename later, until it completes."""
    renames = 0
    while (code := in_a_fork(stage, renames)) == -signal.SIGKILL:
        renames += 1
    if code != 0:
        sys.exit(f"{stage} ended with {code} after {renames} kills")
    return renames


def in_a_fork(stage: str, renames: int) -> int:
    """Run a stage that kills itself before its first rename or after so many; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        done = [0]
        for name in ("rename", "replace"):
            setattr(Path, name, deadly(getattr(Path, name), renames, done))
        code = run_stage_by_name(stage)
    finally:
        os._exit(code)


def deadly(rename: Callable[..., Any], renames: int, done: list[int]) -> Callable[..., Any]:
    """A rename that kills its process unless it is of the state, of a new folder, or a repair."""

    def moved(source: Path, target: Path) -> Any:
        inside = any(part.startswith(".") for part in Path(target).parent.parts)
        counts = not inside and source.suffix != ".old"
        if counts and renames == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = rename(source, target)
        done[0] += counts
        if counts and done[0] == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return moved


if __name__ == "__main__":
    main(sys.argv[1:])
