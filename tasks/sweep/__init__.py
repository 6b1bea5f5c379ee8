"""Sweeps: a workspace for each recipe."""
