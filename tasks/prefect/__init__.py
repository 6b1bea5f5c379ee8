"""Prefect: flow runs, schedules, notifications."""
