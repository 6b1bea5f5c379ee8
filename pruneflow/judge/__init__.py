"""Judgement: comparison, retention with intervals, metrics, gates, summary."""
