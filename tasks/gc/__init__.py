"""Garbage collection: what nothing needs any more."""
