"""Garbage collection: find and remove what is no longer needed."""
