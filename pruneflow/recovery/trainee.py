"""Preparation of the pruned model for training, and its restoration afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import Embedding, Parameter
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

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
    types = widen(student)
    frozen = _embeddings(student) if settings.freeze_embeddings else set()
    trainable = {}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
        if parameter.requires_grad:
            trainable[name] = parameter
    return Trainee(student.eval(), trainable, lambda: restore_types(student, types))


def widen(model: PreTrainedModel) -> dict[str, Any]:
    """Convert narrower weights to float32, in place; returns the original data types."""
    types = {}
    for name, parameter in model.named_parameters():
        types[name] = parameter.dtype
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return types


def restore_types(model: PreTrainedModel, types: dict[str, Any]) -> PreTrainedModel:
    """Undo `widen`, and return the model frozen and in evaluation mode."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])
        parameter.grad = None
    return model.eval().requires_grad_(False)


def _embeddings(model: PreTrainedModel) -> set[int]:
    """Ids of the parameters of token embeddings, position embeddings and the output head."""
    modules = [module for module in model.modules() if isinstance(module, Embedding)]
    modules.append(model.get_output_embeddings())
    return {id(p) for module in modules if module is not None for p in module.parameters()}


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
