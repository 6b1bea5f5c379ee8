"""Iterative structured pruning of language models.

The engine alone, as a library::

    from pruneflow import CalibrationSet, Recipe, evaluate, load_model, prune, recover, save_model

The pipeline around it (Prefect, DVC, MLflow) is in flows/ and tasks/; its command is `pruneflow`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pruneflow.api import evaluate, load_model, save_model
    from pruneflow.pruning.prune import Recipe, prune
    from pruneflow.recovery.distillation import recover
    from pruneflow.settings.recovery import RecoverySettings
    from pruneflow.tokens.calibration_set import CalibrationSet

__all__ = [
    "CalibrationSet",
    "Recipe",
    "RecoverySettings",
    "evaluate",
    "load_model",
    "prune",
    "recover",
    "save_model",
]

_HOMES = {
    "CalibrationSet": "pruneflow.tokens.calibration_set",
    "Recipe": "pruneflow.pruning.prune",
    "RecoverySettings": "pruneflow.settings.recovery",
    "evaluate": "pruneflow.api",
    "load_model": "pruneflow.api",
    "prune": "pruneflow.pruning.prune",
    "recover": "pruneflow.recovery.distillation",
    "save_model": "pruneflow.api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the command line answers before torch could be loaded."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pruneflow' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
