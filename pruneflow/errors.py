"""The errors a user can act on; every message says what is wrong, where, and how to mend it."""


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
