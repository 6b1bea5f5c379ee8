"""The pruning engine: torch and transformers; knows nothing of Prefect, DVC or MLflow."""
