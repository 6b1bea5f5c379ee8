"""Estimated disk space and memory of a run, from the model's size and the number of rounds."""

import math
import shutil
import tempfile
from typing import NamedTuple

from pruneflow.errors import InputError
from pruneflow.models.digests import weight_file_bytes
from pruneflow.models.source import source_parameters
from pruneflow.paths import CHECKPOINTS, MODEL
from pruneflow.settings.pipeline import DENSE, PipelineSettings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LIBRARIES = 2 * 10**9  # torch, transformers and the activations of a small batch


class Footprint(NamedTuple):
    """Bytes needed by a complete run.

    Attributes:
        disk_least: when DVC's cache and remote take no extra space (reflinks).
        disk_most: when they are copies on the same disk.
        memory: of the process that compares a round with the dense model.
        temporary: in the temporary folder, where MLflow copies a model that is registered.
    """

    disk_least: int
    disk_most: int
    memory: int
    temporary: int


def footprint(settings: PipelineSettings, dtype: str) -> Footprint | None:
    """Estimate the needs of a run; None when the model is on the hub and its size not yet known.

    Each round counts as large as the dense model. In addition to the rounds there are the dense
    model, the delivered one, the one being written, and the registered version; the cache and the
    remote each hold the dense model and the rounds once. `dtype` is the compute type.

    Raises:
        InputError: the model cannot be read.
    """
    weights = weight_file_bytes(CHECKPOINTS / DENSE)  # 0 when it does not exist yet
    stored = _BYTES[settings.model.dtype]
    parameters: int | None = math.ceil(weights / stored) or source_parameters(settings.model)
    if parameters is None:
        return None
    rounds, model = len(settings.rounds), parameters * stored
    copies = (2 if settings.registry.push else 1) * (rounds + 1)
    return Footprint(
        disk_least=(rounds + 3) * model,
        disk_most=(rounds + 4 + copies) * model,
        memory=2 * parameters * _BYTES[dtype] + _LIBRARIES,
        temporary=model,
    )


def check_temporary_folder(settings: PipelineSettings) -> None:
    """Check that the temporary folder holds a model.

    Raises:
        InputError: it is too small.
    """
    needed = footprint(settings, "float32")
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed is not None and free < needed.temporary:
        raise InputError(
            f"the temporary folder {folder} has {free / 1e9:.1f} GB free, and registering a model "
            f"takes {needed.temporary / 1e9:.1f} GB: free some, or set TMPDIR to a larger folder"
        )


def present() -> int:
    """Bytes of the models already in the workspace, which a run overwrites."""
    folders = [*CHECKPOINTS.glob("[!.]*"), MODEL]
    return sum(weight_file_bytes(folder) for folder in folders if folder.is_dir())
