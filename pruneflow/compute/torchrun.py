"""Whether `torchrun` started this process, and as which rank: read from the environment alone."""

import os


def is_launched() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process is the first rank, or alone; without meeting the others."""
    return not is_launched() or os.environ.get("RANK") == "0"
