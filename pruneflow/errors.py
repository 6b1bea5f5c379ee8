"""The errors a user can act on; every message says what is wrong, where, and how to mend it."""

import sys
import traceback


class PruneflowError(Exception):
    """Anything pruneflow reports as one line instead of a traceback."""

    exit_code = 1


class InputError(PruneflowError):
    """Bad input: a setting, a file, a model or a data source that cannot be used as it is."""

    exit_code = 2


class DamagedArtifactError(InputError):
    """A file on disk is missing, truncated, or not the one its manifest describes."""


class WorkspaceBusyError(InputError):
    """Another run or stage is at work on this workspace."""


class StoreBusyError(WorkspaceBusyError):
    """Somebody else writes to MLflow's store this moment: it passes by itself."""


def report(error: PruneflowError) -> int:
    """Say an error in one line on stderr; returns the exit code it stands for."""
    # Frames keep progress bars open, and the line would land behind a bar.
    traceback.clear_frames(error.__traceback__)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
