"""Models: loading, the structure of each family, export and proof of loading."""
