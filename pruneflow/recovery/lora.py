"""Training of low-rank adapters (LoRA, arXiv 2106.09685), merged into the weights at the end.

The weights themselves keep their data type and have no gradients or optimizer state, so only the
adapters take extra memory.
"""

from typing import Any

from peft import LoraConfig, get_peft_model
from torch.nn import Linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pruneflow.models.structure import layers_of
from pruneflow.recovery.trainee import Trainee, restore_types, widen
from pruneflow.settings.recovery import RecoverySettings


def adapters(student: PreTrainedModel, settings: RecoverySettings) -> Trainee:
    """Add an adapter to every linear layer of the blocks.

    The first matrices are random (torch's generator), the second are 0, so the adapted model is
    initially equivalent to the student.
    """
    types = {name: parameter.dtype for name, parameter in student.named_parameters()}
    linears = block_linears(student)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=list(linears),
        fan_in_fan_out=any(isinstance(linear, Conv1D) for linear in linears.values()),
    )
    wrapped: Any = get_peft_model(student.eval(), config)

    def merge() -> PreTrainedModel:
        widen(wrapped)  # so that weight + adapter is rounded once
        merged = wrapped.merge_and_unload(safe_merge=True)
        return restore_types(merged, types)

    trainable = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    return Trainee(wrapped, trainable, merge)


def block_linears(model: PreTrainedModel) -> dict[str, Any]:
    """The linear layers of a model's blocks by name, including GPT-2's Conv1D."""
    names = {id(module): name for name, module in model.named_modules()}
    return {
        names[id(module)]: module
        for layer in layers_of(model)
        for module in layer.module.modules()
        if isinstance(module, Linear | Conv1D)
    }
