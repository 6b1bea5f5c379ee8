"""Errors a user can act on; every message says what is wrong, where, and how to fix it."""

import sys
import traceback


class PruneflowError(Exception):
    """Anything pruneflow reports as one line instead of a traceback."""

    exit_code = 1


class InputError(PruneflowError):
    """Bad input: a setting, file, model or data source that cannot be used."""

    exit_code = 2


class DamagedArtifactError(InputError):
    """A file on disk is missing, truncated, or does not match its manifest."""


class WorkspaceBusyError(InputError):
    """Another run or stage is using this workspace."""


class StoreBusyError(WorkspaceBusyError):
    """Another process is writing to MLflow's store; retrying later succeeds."""


def report(error: PruneflowError) -> int:
    """Print an error as one line on stderr; returns its exit code."""
    # Frames keep progress bars open, and the line would be printed after a bar.
    traceback.clear_frames(error.__traceback__)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
