"""Settings: the schema of every configuration file."""
