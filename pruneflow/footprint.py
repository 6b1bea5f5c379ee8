"""What a run needs of disk and memory, estimated from the model's size and the number of rounds."""

import math
from typing import NamedTuple

from pruneflow.models.digests import weight_file_bytes
from pruneflow.models.source import source_parameters
from pruneflow.paths import CHECKPOINTS, MODEL
from pruneflow.settings.pipeline import DENSE, PipelineSettings

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LIBRARIES = 2 * 10**9  # torch, transformers and the activations of a small batch


class Footprint(NamedTuple):
    """Bytes that a run from the beginning takes.

    Attributes:
        disk_least: where DVC's cache and remote take no room of their own (reflinks).
        disk_most: where they hold copies on the same disk.
        memory: of the process that compares a round with the dense model.
    """

    disk_least: int
    disk_most: int
    memory: int


def footprint(settings: PipelineSettings, dtype: str) -> Footprint | None:
    """Estimate what a run needs; None when the model is on the hub and its size not known yet.

    Each round is counted as large as the dense model. Besides the rounds there are the dense
    model, the delivered one, the one that is being written, and the registered version; the cache
    and the remote hold the dense model and the rounds, once each.

    Args:
        settings: the pipeline's.
        dtype: what models compute in, ``bfloat16`` or ``float32``.

    Raises:
        InputError: the model cannot be read.
    """
    weights = weight_file_bytes(CHECKPOINTS / DENSE)  # 0 when it is not there yet
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
    )


def present() -> int:
    """Bytes of the models that are in the workspace already, which a run writes over."""
    folders = [*CHECKPOINTS.glob("[!.]*"), MODEL]
    return sum(weight_file_bytes(folder) for folder in folders if folder.is_dir())
