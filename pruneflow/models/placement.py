"""Where a model's weights are: whole on the device, or its blocks in host memory.

A streamed model has its embeddings, last norm and head on the device; each block's weights come
there when it runs and leave when it has run, so that the device's memory does not grow with depth.
Its own forward pass works as ever, block by block; a backward pass needs `resident`, which keeps a
block there until it is done (pruneflow.pruning.passes). On a CPU
nothing moves, and nothing is saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pruneflow.models.families import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


def place(model: "PreTrainedModel", device: str, streamed: bool) -> "PreTrainedModel":
    """Put a model on a device, whole or all but its blocks; where it was streamed, it is no more.

    Args:
        model: it and its tensors are moved in place.
        device: ``cpu``, ``cuda`` or one of several such as ``cuda:1``.
        streamed: leave the blocks in host memory.
    """
    chosen: Any = model
    blocks: Any = model.get_submodule(family_of(model.config).layers)
    for block in blocks:
        _forget(block)
    if not streamed:
        chosen.to(device)
    else:
        inside = {id(module) for block in blocks for module in block.modules()}
        for module in model.modules():
            for tensor in _own_tensors(module):
                if id(module) not in inside:
                    tensor.data = tensor.data.to(device)
                elif device == "cpu":
                    tensor.data = tensor.data.cpu()
                else:
                    tensor.data = tensor.data.cpu().pin_memory()
        for block in blocks:
            block.guest = _Guest(model.device, block)
    chosen.is_streamed = streamed
    return model


def is_streamed(model: "PreTrainedModel") -> bool:
    """Whether a model's blocks come to its device one at a time."""
    return bool(getattr(model, "is_streamed", False))


@contextmanager
def resident(block: "nn.Module", changed: bool = False) -> Iterator[None]:
    """Keep a block's weights on the device; a model that is not streamed has them there.

    Args:
        block: one of the model's transformer blocks.
        changed: its weights are changed within, so that they are copied back.
    """
    guest = getattr(block, "guest", None)
    if guest is None:
        yield
        return
    guest.enter()
    try:
        yield
    finally:
        guest.leave(changed)


def to_host(tensor: "Tensor") -> "Tensor":
    """A copy in the host's memory, page-locked, that goes back to the device at full speed.

    The copy is under way when this returns: only what the device does next may rely on it.
    """
    import torch

    if tensor.device.type == "cpu":
        return tensor
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


class _Guest:
    """Brings one block's weights to the device, and lets the host's copy stand in afterwards."""

    def __init__(self, device: Any, block: "nn.Module") -> None:
        self.device, self.block = device, block
        self.stays = 0
        self.home: dict[Tensor, Tensor] = {}
        self.hooks = [
            block.register_forward_pre_hook(lambda *_: self.enter()),
            block.register_forward_hook(lambda *_: self.leave(), always_call=True),
        ]

    def __deepcopy__(self, _memo: Any) -> "_Guest":
        return self  # a copy of the block runs while the block itself stays

    def enter(self) -> None:
        self.stays += 1
        if self.stays > 1 or "forward" in vars(self.block):  # a block that is passed over
            return
        for tensor in _tensors(self.block):
            if tensor.device != self.device:
                self.home[tensor] = tensor.data
                tensor.data = tensor.data.to(self.device, non_blocking=True)

    def leave(self, changed: bool = False) -> None:
        import torch

        self.stays -= 1
        if self.stays:
            return
        for tensor in _tensors(self.block):
            before = self.home.pop(tensor, None)
            if before is None or changed:
                tensor.data = to_host(tensor.data)
            else:
                tensor.data = before
        self.home.clear()  # what was cut away in between
        if changed and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _forget(block: Any) -> None:
    guest = vars(block).pop("guest", None)
    if guest is not None:
        for hook in guest.hooks:
            hook.remove()


def _own_tensors(module: "nn.Module") -> "Iterator[Tensor]":
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _tensors(module: "nn.Module") -> "Iterator[Tensor]":
    yield from module.parameters()
    yield from module.buffers()
