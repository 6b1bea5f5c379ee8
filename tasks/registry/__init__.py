"""MLflow's model registry: versions, promotion, serving."""
