"""Export of a pruned model to a directory that `from_pretrained` loads.

Layout `uniform`: all layers have the same widths, and the directory is an ordinary one. Layout
`per_layer`: every layer has its own, and the directory has a small model file (see `per_layer`).
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.compute.placement import place_like
from pruneflow.errors import PruneflowError
from pruneflow.models.families import configured_widths, uniform_config
from pruneflow.models.loading import cast_parameters, empty_model
from pruneflow.models.per_layer import save_in_layout
from pruneflow.models.structure import layers_of, record_tying, widths_of


def rebuild(model: PreTrainedModel, layout: str = "uniform") -> PreTrainedModel:
    """Convert a pruned model to one that can be saved in a layout.

    For `uniform` the model is rebuilt from a configuration with its current widths and uses the
    same tensors, not copies; a configuration that does not match fails before anything is written.
    The class is the family's own, or that of its equivalent family if the family does not support
    the head count. For `per_layer` the model is returned unchanged.

    Raises:
        PruneflowError: layout `uniform`, and widths differ between layers, or the family does not
            support the head count, or a tensor does not match.
    """
    record_tying(model)
    if layout == "per_layer":
        save_in_layout(model)
        return model.eval().requires_grad_(False)
    layers = layers_of(model)
    found = {widths_of(layer) for layer in layers}
    if len(found) != 1:
        shown = sorted(tuple(widths) for widths in found)
        raise PruneflowError(f"layers have different widths {shown}: use layout per_layer")
    widths = found.pop()
    config = uniform_config(model.config, widths)
    if config is None:
        raise PruneflowError(
            f"no configuration of {model.config.model_type} has {widths.heads} heads in "
            f"{widths.kv_groups} KV groups: do not prune attention, or use layout per_layer"
        )
    fresh = empty_model(config, model.dtype)
    try:
        fresh.load_state_dict(model.state_dict(), strict=True, assign=True)
    except RuntimeError as error:
        raise PruneflowError(
            f"the pruned weights do not match their configuration: {error}"
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

    A model with layers that differ from its configuration is written in layout `per_layer`.
    """
    cast_parameters(model, dtype)
    record_tying(model)
    model.config.dtype = dtype
    configured = configured_widths(model.config)
    uniform = all(widths_of(layer) == configured for layer in layers_of(model))
    if uniform:  # a model that was loaded from the other layout would save itself in that one
        type(model).save_pretrained(model, directory, max_shard_size="4GB")
    else:
        save_in_layout(model)
        model.save_pretrained(directory, max_shard_size="4GB")
    tokenizer.save_pretrained(directory)
    for path in directory.rglob("*"):  # safetensors makes files readable by the owner only
        path.chmod(0o755 if path.is_dir() else 0o644)
