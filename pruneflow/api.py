"""The library's main functions: load, evaluate and save models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.artifacts import staged_directory
from pruneflow.compute.placement import place_by_settings
from pruneflow.errors import InputError
from pruneflow.measure.perplexity import perplexity_by_domain
from pruneflow.models import loading
from pruneflow.models.export import save
from pruneflow.models.round_record import RECORD
from pruneflow.models.token_blocks import check_blocks
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
    """Load a model of either layout, with frozen weights, and its tokenizer.

    No code in the directory is executed. A directory written by pruneflow is first verified against
    its record.

    Args:
        source: a model directory (pruned or not), a hub id, a ``.gguf`` file, or
            ``package:NAME/FILE`` for a file in an installed package.
        dtype: type of the weights and of all passes.
        device: ``auto`` uses a GPU if torch finds one.
        placement: ``whole`` on one GPU, ``spread`` over all GPUs, or ``streamed``: blocks stay in
            host memory and are loaded to the GPU one at a time. ``auto`` takes the first that fits.
        revision: commit of a hub id; required for hub ids.

    Raises:
        InputError: the model does not exist, its family is not supported, it contains NaN or
            infinity, a GPU is requested and there is none, or the GPUs are too small to spread it.
        DamagedArtifactError: a file does not match the model's record.
    """
    compute = ComputeSettings(device=device, dtype=dtype, placement=placement)
    target = loading.resolve_device(compute)  # fail on a missing GPU before reading weights
    path = Path(source).expanduser()
    if (path / RECORD).is_file():
        return loading.load_model(path, compute)
    model, tokenizer = loading.load_source(
        ModelSettings(source=str(source), revision=revision, dtype=dtype)
    )
    return place_by_settings(model, compute, target), tokenizer


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path
) -> None:
    """Write a model directory that plain transformers loads (see docs/method.md, layouts).

    Its ``README.md`` is a model card without results; the pipeline's card includes them.

    Raises:
        InputError: the directory already exists.
    """
    directory = Path(directory)
    if directory.exists():
        raise InputError(f"{directory} already exists: give another directory, or delete it")
    with staged_directory(directory) as folder:
        save(model, tokenizer, folder, model.dtype)
        write_library_card(folder, directory.name, model)


def evaluate(
    model: PreTrainedModel,
    text: CalibrationSet | Mapping[str, torch.Tensor],
    *,
    batch_tokens: int = 2048,
) -> dict[str, DomainLoss]:
    """Perplexity per domain on held-out text.

    Args:
        model: a causal language model.
        text: a calibration set, of which the validation split is scored, or windows of token ids
            by domain, each ``[windows, tokens]``.
        batch_tokens: tokens in one forward pass.

    Raises:
        InputError: a domain has no windows, or windows of another tokenizer or longer than the
            model's context; the model's weights hold NaN or infinity, or the loss is not finite.
    """
    windows = text.blocks["validation"] if isinstance(text, CalibrationSet) else dict(text)
    check_blocks(model, windows, "evaluate", "held-out")
    loading.check_weights(model)
    return perplexity_by_domain(model, windows, batch_tokens, "evaluate")
