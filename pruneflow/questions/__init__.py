"""Evaluation questions: task files, tasks from the hub, and answers through lm-eval."""
