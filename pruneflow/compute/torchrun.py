"""Whether `torchrun` started this process, and as which rank, from environment variables only."""

import os


def is_launched() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this is the first rank or the only process; does not join the process group."""
    return not is_launched() or os.environ.get("RANK") == "0"
