"""The checks of `pruneflow doctor`."""
