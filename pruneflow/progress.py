"""One progress bar with remaining time: live on a terminal, occasional plain lines in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from pruneflow.compute.torchrun import is_first

Item = TypeVar("Item")

LOG_SECONDS = 5.0  # between two log lines
_LOG_LINE = (
    "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%), {elapsed} elapsed, {remaining} remaining"
)


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and show progress and remaining time on stderr.

    `label` names the work, e.g. ``score r1``; `total` is needed if `items` has no length.
    """
    if not is_first():  # only the first rank shows progress
        yield from items
        return
    live = sys.stderr.isatty()
    yield from tqdm(
        items,
        desc=label,
        total=total,
        mininterval=0.1 if live else LOG_SECONDS,
        bar_format=None if live else _LOG_LINE,
        dynamic_ncols=live,
    )
