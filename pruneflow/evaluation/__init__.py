"""Measures: perplexity, question answering, latency, retention, gates."""
