"""Measurements: perplexity, drift, latency, deployment."""
