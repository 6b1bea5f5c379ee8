"""The real graph made small: what its settings are, and which stages it has."""

from typing import Any

# Limits that say nothing about random weights: their greedy text goes round in circles.
OF_TRAINED_MODELS = (
    "max_kl",
    "min_top1_agreement",
    "max_repetition_rise",
    "max_entropy_drift",
    "max_norm_drift",
)

# What makes minutes out of hours, whatever the model, its text and its rounds are.
SMALL: dict[str, Any] = {
    "compute": {"device": "cpu", "dtype": "float32"},
    "calibration": {
        "sequence_length": 32,
        "sequences": 12,
        "test_sequence_length": 32,
        "test_sequences": 2,
    },
    "pruning": {"neuron_multiple": 4},
    "health": dict.fromkeys(OF_TRAINED_MODELS),
    "evaluation": {"tasks": {"piqa": 40, "siqa": 40}, "bootstrap_samples": 100},
    "latency": {"prompt_tokens": 16, "new_tokens": 4, "repeats": 6, "max_seconds": 0},
}

RECOVERY = {"token_budget": 2048, "sequence_length": 32, "batch_sequences": 4}

# The stages of a pipeline of two rounds, in the order in which they can run; before them comes
# `environment`, which always runs.
STAGES = [
    "model",
    "questions",
    "documents",
    "validate",
    "calibration",
    "baseline",
    "round@r1",
    "round@r2",
    "select",
    "evaluation",
    "latency",
    "report",
]
