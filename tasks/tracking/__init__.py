"""MLflow tracking: the store, and what is logged to it."""
