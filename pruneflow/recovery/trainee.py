"""The pruned model made ready for training, and turned back into a plain model afterwards."""

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
        model: what is called; its dropout is off.
        parameters: those that are trained, float32 or wider, by name.
        finish: gives back the plain model, frozen, in the types that it came in.
    """

    model: Any
    parameters: dict[str, Parameter]
    finish: Callable[[], PreTrainedModel]


def full_weights(student: PreTrainedModel, settings: RecoverySettings) -> Trainee:
    """Train the weights themselves, from float32 copies (float64 stays)."""
    types = widen(student)
    frozen = _embeddings(student) if settings.freeze_embeddings else set()
    chosen = {}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(id(parameter) not in frozen)
        if parameter.requires_grad:
            chosen[name] = parameter
    return Trainee(student.eval(), chosen, lambda: restore_types(student, types))


def widen(model: PreTrainedModel) -> dict[str, Any]:
    """Turn weights into float32 where they are narrower; returns the types that they had."""
    types = {}
    for name, parameter in model.named_parameters():
        types[name] = parameter.dtype
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return types


def restore_types(model: PreTrainedModel, types: dict[str, Any]) -> PreTrainedModel:
    """Undo `widen`; the model comes out frozen and in evaluation mode."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])
        parameter.grad = None
    return model.eval().requires_grad_(False)


def _embeddings(model: PreTrainedModel) -> set[int]:
    """Identities of the parameters of token and position embeddings and of the output head."""
    modules = [module for module in model.modules() if isinstance(module, Embedding)]
    modules.append(model.get_output_embeddings())
    return {id(p) for module in modules if module is not None for p in module.parameters()}


@contextmanager
def recomputed_blocks(student: PreTrainedModel) -> Iterator[None]:
    """Keep each block's input alone, and run the block again in the backward pass.

    transformers' own switch works in training mode only, which would also switch dropout on.
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
