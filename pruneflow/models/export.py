"""A pruned model as a directory that `from_pretrained` loads.

Layout `uniform`: all layers have the same widths, and the directory is an ordinary one. Layout
`per_layer`: each has its own, and the directory brings one small model file (see `per_layer`).
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.compute.placement import place_like
from pruneflow.errors import PruneflowError
from pruneflow.models.families import configured_widths, uniform_config
from pruneflow.models.loading import cast_parameters, empty_model
from pruneflow.models.per_layer import describe
from pruneflow.models.structure import layers_of, widths_of


def rebuild(model: PreTrainedModel, layout: str = "uniform") -> PreTrainedModel:
    """Make a cut model one that can be saved in a layout.

    For `uniform` it is built anew from a configuration with its present widths, and takes over its
    tensors, not copies: one that does not describe them fails here, before anything is written. It
    is of the family's own class, or of its twin where the family refuses the head count. For
    `per_layer` it stays the object it is, plain class and cut layers.

    Raises:
        PruneflowError: layout `uniform`, and widths differ between layers, or the family cannot
            hold the head count, or a tensor does not fit.
    """
    if layout == "per_layer":
        return model.eval().requires_grad_(False)
    layers = layers_of(model)
    found = {widths_of(layer) for layer in layers}
    if len(found) != 1:
        shown = sorted(tuple(widths) for widths in found)
        raise PruneflowError(f"layers have different widths {shown}: not uniform")
    widths = found.pop()
    config = uniform_config(model.config, widths)
    if config is None:
        raise PruneflowError(
            f"no configuration of {model.config.model_type} holds {widths.heads} heads in "
            f"{widths.kv_groups} KV groups: keep attention whole, or use layout per_layer"
        )
    fresh = empty_model(config, model.dtype)
    try:
        fresh.load_state_dict(model.state_dict(), strict=True, assign=True)
    except RuntimeError as error:
        raise PruneflowError(
            f"the pruned weights do not fit their configuration: {error}"
        ) from None
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return place_like(fresh, model).eval().requires_grad_(False)


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    dtype: torch.dtype,
) -> None:
    """Write weights (safetensors), configuration and tokenizer into an existing directory.

    A model whose configuration does not describe every layer is written in layout `per_layer`.
    """
    cast_parameters(model, dtype)
    model.config.dtype = dtype
    configured = configured_widths(model.config)
    ordinary = all(widths_of(layer) == configured for layer in layers_of(model))
    # Transformers renames some families' tensors as they are stored (GPT-NeoX's head), and undoes
    # it for its own classes only: beside a model file the names are the model's.
    model.save_pretrained(directory, max_shard_size="4GB", save_original_format=ordinary)
    if not ordinary:
        describe(model, directory)
    tokenizer.save_pretrained(directory)
    for path in directory.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone; others are to serve it
