"""Prefect: the server, flow runs, schedules."""
