"""Text data: sources, cleaned documents, the validated table."""
