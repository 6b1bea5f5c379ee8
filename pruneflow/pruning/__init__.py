"""Pruning: statistics, scores, allocation, refit, rounds."""
