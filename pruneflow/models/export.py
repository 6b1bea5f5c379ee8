"""A pruned model as a directory that plain `from_pretrained` loads."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.errors import PruneflowError
from pruneflow.models.loading import cast_parameters, empty_model
from pruneflow.models.structure import layers_of, resized_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def rebuild(model: "PreTrainedModel") -> "PreTrainedModel":
    """Build the model anew from a configuration with its present widths, and copy its weights.

    A configuration that does not describe the weights fails here, before anything is written.

    Raises:
        PruneflowError: widths differ between layers, or a tensor does not fit.
    """
    layers = layers_of(model)
    widths = {(layer.neurons, layer.kv_groups) for layer in layers}
    if len(widths) != 1:
        raise PruneflowError(f"layers have different widths {sorted(widths)}: not uniform")
    neurons, groups = widths.pop()
    config = resized_config(
        model.config, neurons=neurons, groups=groups, heads_per_group=layers[0].heads_per_group
    )
    fresh = empty_model(type(model), config, model.dtype)
    try:
        fresh.load_state_dict(model.state_dict(), strict=True)
    except RuntimeError as error:
        raise PruneflowError(
            f"the pruned weights do not fit their configuration: {error}"
        ) from None
    fresh.generation_config = model.generation_config
    pruned: PreTrainedModel = fresh.to(model.device).eval().requires_grad_(False)
    return pruned


def save(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    directory: Path,
    dtype: "torch.dtype",
) -> None:
    """Write weights (safetensors), configuration and tokenizer into an existing directory."""
    cast_parameters(model, dtype)
    model.config.dtype = dtype
    model.save_pretrained(directory, max_shard_size="4GB")
    tokenizer.save_pretrained(directory)
    for path in directory.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone; others are to serve it
