"""Tokens: documents packed into blocks, the mixture of domains, the calibration set."""
