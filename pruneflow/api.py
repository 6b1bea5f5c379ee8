"""The library's front door: load a model from anywhere, measure it, save it for anyone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.artifacts import staged_directory
from pruneflow.compute.placement import place_as_asked
from pruneflow.errors import InputError
from pruneflow.measure.perplexity import perplexity_by_domain
from pruneflow.models import loading
from pruneflow.models.export import save
from pruneflow.models.round_record import RECORD
from pruneflow.records import DomainLoss
from pruneflow.report.directory_card import write_library_card
from pruneflow.settings.pipeline import ComputeSettings, ModelSettings, Placement
from pruneflow.tokens.calibration_set import CalibrationSet


def load_model(
    source: str | Path,
    *,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    placement: Placement = "auto",
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model of either layout, weights frozen, and its tokenizer.

    Nothing in the directory is executed, and a directory that this project wrote is checked
    against its record first.

    Args:
        source: a model directory (of this project or any other), a hub id, a ``.gguf`` file, or
            ``package:NAME/FILE`` for a file that an installed package carries.
        dtype: type of the weights and of all passes.
        device: ``auto`` takes a GPU when torch sees one.
        placement: ``whole`` on one GPU, ``spread`` over those there are, or ``streamed``: blocks in
            host memory, brought to the GPU one at a time. ``auto`` takes the first with room.
        revision: commit of a hub id; needed for hub ids.

    Raises:
        InputError: it does not exist, is of a family that is not supported, holds NaN or infinity,
            a GPU is asked for and there is none, or all GPUs together are too small to spread it.
        DamagedArtifactError: it is not what its record says.
    """
    compute = ComputeSettings(device=device, dtype=dtype, placement=placement)
    target = loading.resolve_device(compute)  # a missing GPU shows before weights are read
    path = Path(source).expanduser()
    if (path / RECORD).is_file():
        return loading.load_model(path, compute)
    model, tokenizer = loading.load_source(
        ModelSettings(source=str(source), revision=revision, dtype=dtype)
    )
    return place_as_asked(model, compute, target), tokenizer


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path
) -> None:
    """Write a model directory that plain transformers loads (see docs/method.md, layouts).

    Its ``README.md`` is a model card; the pipeline's has what was measured as well.

    Raises:
        InputError: the directory exists.
    """
    directory = Path(directory)
    if directory.exists():
        raise InputError(f"{directory} exists already: give another directory, or delete it")
    with staged_directory(directory) as folder:
        save(model, tokenizer, folder, model.dtype)
        write_library_card(folder, directory.name, model)


def evaluate(
    model: PreTrainedModel,
    text: CalibrationSet | Mapping[str, torch.Tensor],
    *,
    batch_tokens: int = 2048,
) -> dict[str, DomainLoss]:
    """Perplexity by domain on text that was not calibrated on.

    Args:
        model: a causal language model.
        text: a calibration set, whose validation split is scored, or windows of token ids by
            domain, ``[windows, tokens]`` each.
        batch_tokens: tokens in one forward pass.

    Raises:
        InputError: a domain has no windows, or the model gives no finite loss.
    """
    windows = text.blocks["validation"] if isinstance(text, CalibrationSet) else dict(text)
    return perplexity_by_domain(model, windows, batch_tokens, "evaluate")
