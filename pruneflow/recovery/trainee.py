"""The pruned model in training: with all its weights, or with low-rank adapters only.

Adapters (LoRA, arXiv 2106.09685) are merged into the weights at the end. The weights themselves
keep their data type and have no gradients or optimizer state, so only the adapters take extra
memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import Embedding, Linear, Parameter
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pruneflow.models.families import family_of
from pruneflow.models.structure import layers_of
from pruneflow.settings.recovery import RecoverySettings


@dataclass(frozen=True)
class Trainee:
    """A model in training.

    Attributes:
        model: the model to call, in evaluation mode (no dropout).
        parameters: the trainable parameters by name, float32 or wider.
        finish: returns the plain model, frozen, in its original data types.
    """

    model: Any
    parameters: dict[str, Parameter]
    finish: Callable[[], PreTrainedModel]


def full_weights(student: PreTrainedModel, settings: RecoverySettings) -> Trainee:
    """Train all weights, in float32 (float64 is kept)."""
    types = _data_types(student)
    _widen(student)
    student.requires_grad_(True)
    if settings.freeze_embeddings:
        head: Any = student.get_output_embeddings()
        head.requires_grad_(False)
        for module in student.modules():
            if isinstance(module, Embedding):
                module.requires_grad_(False)
    return Trainee(student.eval(), _trainable(student), lambda: _restore(student, types))


def adapters(student: PreTrainedModel, settings: RecoverySettings) -> Trainee:
    """Add an adapter to every linear layer of the blocks.

    The first matrices are random (torch's generator), the second are 0, so the adapted model is
    initially equivalent to the student.
    """
    types = _data_types(student)
    linears = block_linears(student)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=list(linears),
        fan_in_fan_out=any(isinstance(linear, Conv1D) for linear in linears.values()),
    )
    wrapped: Any = get_peft_model(student.eval(), config)

    def merge() -> PreTrainedModel:
        _widen(wrapped)  # so that weight + adapter is rounded once
        return _restore(wrapped.merge_and_unload(safe_merge=True), types)

    return Trainee(wrapped, _trainable(wrapped), merge)


def block_linears(model: PreTrainedModel) -> dict[str, Linear | Conv1D]:
    """The linear layers of a model's blocks by name, including GPT-2's Conv1D."""
    blocks = family_of(model.config.model_type).layers
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(f"{blocks}.") and isinstance(module, Linear | Conv1D)
    }


def _trainable(model: Any) -> dict[str, Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _data_types(model: PreTrainedModel) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def _widen(model: PreTrainedModel) -> None:
    """Convert narrower weights to float32, in place."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def _restore(model: PreTrainedModel, types: dict[str, torch.dtype]) -> PreTrainedModel:
    """Undo `_widen`, and return the model frozen and in evaluation mode."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])
        parameter.grad = None
    return model.eval().requires_grad_(False)


@contextmanager
def gradient_checkpointing(student: PreTrainedModel) -> Iterator[None]:
    """Store only the input of each block, and recompute the block in the backward pass.

    transformers' own gradient checkpointing requires training mode, which enables dropout.
    """
    blocks = [layer.module for layer in layers_of(student)]
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
