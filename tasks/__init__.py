"""Prefect tasks: one thin function per step; the only place that knows DVC and MLflow."""
