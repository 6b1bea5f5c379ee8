"""Calibration data: sources, documents, validation, packed token blocks."""
