"""Where a model's weights are: whole on one device, spread over several, or in host memory.

A streamed model has its embeddings, last norm and head on the device; each block's weights come
there when it runs and leave when it has run, so that the device's memory does not grow with depth.
Its own forward pass works as ever, block by block; a backward pass needs `resident`, which keeps a
block there until it is done (pruneflow.pruning.passes). On a CPU
nothing moves, and nothing is saved.

A spread model has a part of its blocks on each of several devices and all else on the first;
accelerate's hooks bring a part's inputs to where it is. It is described as transformers does it, by
`hf_device_map`, so that a model loaded with ``device_map="auto"`` is one, too.
"""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

from pruneflow.errors import InputError
from pruneflow.models.families import family_of
from pruneflow.ranks import own_gpus

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from pruneflow.config import ComputeSettings

DeviceMap = dict[str, Any]  # names of modules, and the device of each

WEIGHTS_SHARE = 2 / 3  # of a GPU's free memory, for weights; the rest is for the work on them
TOGETHER_SHARE = 0.9  # where one sequence is all the work


def place_as_asked(
    model: "PreTrainedModel", compute: "ComputeSettings", device: str
) -> "PreTrainedModel":
    """Put a model where `compute.placement` says; `auto` is whole, else spread, else streamed.

    Args:
        model: its tensors are moved in place.
        compute: the settings.
        device: ``cpu`` or ``cuda``; a model is spread over this rank's GPUs.

    Raises:
        InputError: it is to be spread, and the GPUs together have no room for its weights.
    """
    import torch

    asked = compute.placement
    if device == "cpu":
        return place(model, device, streamed=asked == "streamed")
    gc.collect()  # models that accelerate placed are let go of in cycles
    torch.cuda.empty_cache()
    free = {f"cuda:{gpu}": torch.cuda.mem_get_info(gpu)[0] for gpu in own_gpus()}
    weights = _bytes(model)
    if asked == "auto":
        fits = weights <= WEIGHTS_SHARE * torch.cuda.mem_get_info()[0]
        together = weights <= WEIGHTS_SHARE * len(free) * min(free.values())
        asked = "whole" if fits else "spread" if together else "streamed"
    if asked != "spread" or len(free) == 1:
        return place(model, device, streamed=asked == "streamed")
    if weights > sum(free.values()):
        raise InputError(
            f"compute.placement is spread, and the weights of {weights / 2**30:.1f} GiB do not fit "
            f"{len(free)} GPUs with {sum(free.values()) / 2**30:.1f} GiB free: set it to streamed"
        )
    return place(model, device, device_map=spread_over(model, list(free)))


def spread_over(model: "PreTrainedModel", devices: list[str]) -> DeviceMap:
    """Blocks in order on the devices, each with an equal share of the weights; the rest first."""
    path = family_of(model.config).layers
    blocks: Any = model.get_submodule(path)
    placed = dict.fromkeys(_outside(model), devices[0])
    share = _bytes(model) / len(devices)
    before = _bytes(model) - sum(_bytes(block) for block in blocks)
    for index, block in enumerate(blocks):
        size = _bytes(block)
        turn = int((before + size / 2) / share)
        placed[f"{path}.{index}"] = devices[min(turn, len(devices) - 1)]
        before += size
    return placed


def place(
    model: "PreTrainedModel",
    device: str,
    *,
    streamed: bool = False,
    device_map: DeviceMap | None = None,
) -> "PreTrainedModel":
    """Put a model on a device or several; how it was placed before is forgotten.

    Args:
        model: it and its tensors are moved in place.
        device: ``cpu``, ``cuda`` or one of several such as ``cuda:1``.
        streamed: leave the blocks in host memory.
        device_map: spread it so instead; see `spread_over`.

    Raises:
        InputError: the map leaves weights in host memory or on disk, or parts a block.
    """
    chosen: Any = model
    path = family_of(model.config).layers
    _check_map(device_map or {}, path)
    _forget(model)
    if device_map:
        _spread(model, device_map)
    elif not streamed:
        chosen.to(device)
    else:
        for module in _outside(model).values():
            for tensor in _own_tensors(module):
                tensor.data = tensor.data.to(device)
        for block in chosen.get_submodule(path):
            for tensor in _tensors(block):
                tensor.data = tensor.data.cpu()
                if device != "cpu":
                    tensor.data = tensor.data.pin_memory()
            block.guest = _Guest(model.device, block)
    chosen.is_streamed = streamed
    return model


def place_like(model: "PreTrainedModel", other: "PreTrainedModel") -> "PreTrainedModel":
    """Put a model where another is, which may be itself: then another's hooks become ours.

    Raises:
        InputError: as `place`.
    """
    device_map = getattr(other, "hf_device_map", None)
    return place(model, str(other.device), streamed=is_streamed(other), device_map=device_map)


def placement_of(model: "PreTrainedModel") -> str:
    """``whole``, ``spread`` or ``streamed``."""
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    return "streamed" if is_streamed(model) else "spread" if spread else "whole"


def fit_together(models: "Iterable[PreTrainedModel]") -> bool:
    """Whether several models may be whole on this process's GPU at once."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    return sum(map(_bytes, models)) <= TOGETHER_SHARE * torch.cuda.mem_get_info()[0]


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


def _spread(model: "PreTrainedModel", device_map: DeviceMap) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    chosen: Any = model
    skip: Any = chosen._skip_keys_device_placement  # caches, which go with their blocks
    for name, device in device_map.items():
        part = model.get_submodule(name)
        for tensor in _tensors(part):
            tensor.data = tensor.data.to(device)
        add_hook_to_module(part, AlignDevicesHook(device, skip_keys=skip))
    if "" not in device_map:
        add_hook_to_module(
            model, AlignDevicesHook(model.device, io_same_device=True, skip_keys=skip)
        )
    chosen.hf_device_map = device_map


def _check_map(device_map: DeviceMap, path: str) -> None:
    devices = {str(device) for device in device_map.values()}
    if devices & {"disk", "meta"} or ("cpu" in devices and len(devices) > 1):
        raise InputError(
            "the model's device map leaves weights in host memory or on disk, which cannot be cut: "
            "load it with pruneflow.load_model, which streams a model that the GPUs cannot hold"
        )
    by_block: dict[str, set[str]] = {}
    for name, device in device_map.items():
        if name.startswith(f"{path}."):
            index = name.removeprefix(f"{path}.").partition(".")[0]
            by_block.setdefault(index, set()).add(str(device))
    for index, found in by_block.items():
        if len(found) > 1:
            raise InputError(
                f"the model's device map has parts of {path}.{index} on {', '.join(sorted(found))}"
                ": keep blocks whole, or load the model with pruneflow.load_model"
            )


def _forget(model: "PreTrainedModel") -> None:
    chosen: Any = model
    for block in chosen.get_submodule(family_of(model.config).layers):
        guest = vars(block).pop("guest", None)
        if guest is not None:
            for hook in guest.hooks:
                hook.remove()
    if hasattr(model, "hf_device_map"):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(model, recurse=True)
        for module in model.modules():  # it leaves the plain method behind
            if vars(module).get("forward") == MethodType(type(module).forward, module):
                del vars(module)["forward"]
        del chosen.hf_device_map


def _outside(model: "PreTrainedModel") -> "dict[str, nn.Module]":
    """Modules by name that have tensors of their own and are in no block."""
    blocks: Any = model.get_submodule(family_of(model.config).layers)
    inside = {id(module) for block in blocks for module in block.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) not in inside and next(_own_tensors(module), None) is not None
    }


def _bytes(module: "nn.Module") -> int:
    return sum(tensor.nbytes for tensor in _tensors(module))


def _own_tensors(module: "nn.Module") -> "Iterator[Tensor]":
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _tensors(module: "nn.Module") -> "Iterator[Tensor]":
    yield from module.parameters()
    yield from module.buffers()
