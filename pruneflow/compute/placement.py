"""Where a model's weights are: whole on one device, spread over several, or in host memory.

A streamed model has its embeddings, last norm and head on the device; each block's weights come
there when it runs and leave when it has run, so that the device's memory does not grow with depth.
Its own forward pass works as ever, block by block; a backward pass needs `resident`, which keeps a
block there until it is done (pruneflow.pruning.passes). On a CPU
nothing moves, and nothing is saved.

A spread model has a part of its blocks on each of several devices and all else on the first; what
enters a part is sent to where it is. It is described as accelerate and transformers do it, by
`hf_device_map`, so that a model loaded with ``device_map="auto"`` is one, too.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Self

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.nn import ModuleList
from transformers import PreTrainedModel

from pruneflow.compute.ranks import own_gpus
from pruneflow.errors import InputError
from pruneflow.settings.pipeline import ComputeSettings

DeviceMap = dict[str, Any]  # names of modules, and the device of each

WEIGHTS_SHARE = 2 / 3  # of a GPU's free memory, for weights; the rest is for the work on them


def place_as_asked(
    model: PreTrainedModel, compute: ComputeSettings, device: str
) -> PreTrainedModel:
    """Put a model where `compute.placement` says; `auto` is whole, else spread, else streamed.

    Args:
        model: its tensors are moved in place.
        compute: the settings.
        device: ``cpu`` or ``cuda``, which is this rank's GPUs.

    Raises:
        InputError: it is to be spread, and the GPUs have no room for its weights.
    """
    asked = compute.placement
    if device == "cpu":
        return place(model, device, streamed=asked == "streamed")
    gpus, weights = own_gpus(), tensor_bytes(model)
    if asked == "auto" and weights <= WEIGHTS_SHARE * free_memory(gpus[0]):
        asked = "whole"
    if asked in ("auto", "spread"):
        free = min(map(free_memory, gpus))  # each is to hold an equal share
        if asked == "auto":
            asked = "spread" if weights <= WEIGHTS_SHARE * free * len(gpus) else "streamed"
        elif weights > free * len(gpus):
            raise InputError(
                f"compute.placement is spread, and {weights / 2**30:.1f} GiB of weights do not fit "
                f"{len(gpus)} GPU(s) with {free / 2**30:.1f} GiB free on the fullest: set it to "
                "streamed"
            )
    if asked == "spread" and len(gpus) > 1:
        return place(model, spread_over(model, [f"cuda:{gpu}" for gpu in gpus]))
    return place(model, f"cuda:{gpus[0]}", streamed=asked == "streamed")


def spread_over(model: PreTrainedModel, devices: list[str]) -> DeviceMap:
    """Where blocks are when each device has an equal share of the weights, the first all else."""
    path = blocks_path(model)
    blocks: Any = model.get_submodule(path)
    placed = dict.fromkeys(_outside(model), devices[0])
    share = tensor_bytes(model) / len(devices)
    before = tensor_bytes(model) - sum(tensor_bytes(block) for block in blocks)
    for index, block in enumerate(blocks):
        size = tensor_bytes(block)
        turn = int((before + size / 2) / share)
        placed[f"{path}.{index}"] = devices[min(turn, len(devices) - 1)]
        before += size
    return placed


def place(
    model: PreTrainedModel, where: str | DeviceMap, *, streamed: bool = False
) -> PreTrainedModel:
    """Put a model on a device or several; how it was placed before is forgotten.

    Args:
        model: it and its tensors are moved in place.
        where: ``cpu``, ``cuda``, one of several such as ``cuda:1``, or the device of each part.
        streamed: leave the blocks in host memory, and bring them to the one device.

    Raises:
        InputError: a map leaves weights in host memory or on disk, or parts a block.
    """
    chosen: Any = model
    path = blocks_path(model)
    if not isinstance(where, str):
        _check_map(where, path)
    _forget(model)
    if not isinstance(where, str):
        _spread(model, where)
    elif not streamed:
        chosen.to(where)
    else:
        for module in _outside(model).values():
            for tensor in _own_tensors(module):
                tensor.data = tensor.data.to(where)
        for block in chosen.get_submodule(path):
            for tensor in _tensors(block):
                tensor.data = tensor.data.cpu()
                if where != "cpu":
                    tensor.data = tensor.data.pin_memory()
            block.guest = _Guest(model.device, block)
    chosen.is_streamed = streamed
    return model


def place_like(model: PreTrainedModel, other: PreTrainedModel) -> PreTrainedModel:
    """Put a model where another is, which may be itself: then accelerate's hooks become ours.

    Raises:
        InputError: as `place`.
    """
    device_map = getattr(other, "hf_device_map", None)
    return place(model, device_map or str(other.device), streamed=is_streamed(other))


def blocks_path(model: PreTrainedModel) -> str:
    """Name of the list of transformer blocks in a model: its first, outermost ``nn.ModuleList``."""
    return next(name for name, part in model.named_modules() if isinstance(part, ModuleList))


def placement_of(model: PreTrainedModel) -> str:
    """``whole``, ``spread`` or ``streamed``."""
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    return "streamed" if is_streamed(model) else "spread" if spread else "whole"


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of a model's or a part's parameters and buffers."""
    return sum(tensor.nbytes for tensor in _tensors(module))


def free_memory(gpu: int) -> int:
    """Bytes free on a GPU, once what this process no longer needs is given back."""
    gc.collect()  # streamed models, and those that accelerate placed, are let go of in cycles
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(gpu)[0]


def is_streamed(model: PreTrainedModel) -> bool:
    """Whether a model's blocks come to its device one at a time."""
    return bool(getattr(model, "is_streamed", False))


@contextmanager
def resident(block: nn.Module, changed: bool = False) -> Iterator[None]:
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


def to_host(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, page-locked, that goes back to the device at full speed.

    The copy is under way when this returns: only what the device does next may rely on it.
    """
    if tensor.device.type == "cpu":
        return tensor
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


class _Guest:
    """Brings one block's weights to the device, and lets the host's copy stand in afterwards."""

    def __init__(self, device: Any, block: nn.Module) -> None:
        self.device, self.block = device, block
        self.stays = 0
        self.home: dict[Tensor, Tensor] = {}
        self.hooks = [
            block.register_forward_pre_hook(lambda *_: self.enter()),
            block.register_forward_hook(lambda *_: self.leave(), always_call=True),
        ]

    def __deepcopy__(self, _memo: Any) -> Self:
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


def _spread(model: PreTrainedModel, device_map: DeviceMap) -> None:

    chosen: Any = model
    skip: Any = chosen._skip_keys_device_placement  # caches, which go with their blocks

    def sent_to(device: Any) -> Callable[..., Any]:
        def send(_module: Any, given: Any, named: Any) -> Any:
            return send_to_device(given, device), send_to_device(named, device, skip_keys=skip)

        return send

    hooks = []
    for name, device in device_map.items():
        part = model.get_submodule(name)
        for tensor in _tensors(part):
            tensor.data = tensor.data.to(device)
        hooks.append(part.register_forward_pre_hook(sent_to(device), with_kwargs=True))
    home = str(model.device)  # logits come back to where tokens were
    head: Any = model.get_output_embeddings()
    hooks.append(head.register_forward_hook(lambda _module, _given, logits: logits.to(home)))
    chosen.hf_device_map, chosen.spread_hooks = device_map, hooks


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


def _forget(model: PreTrainedModel) -> None:
    chosen: Any = model
    for block in chosen.get_submodule(blocks_path(model)):
        guest = vars(block).pop("guest", None)
        if guest is not None:
            for hook in guest.hooks:
                hook.remove()
    for hook in vars(model).pop("spread_hooks", ()):
        hook.remove()
    if vars(model).pop("hf_device_map", None):
        remove_hook_from_module(model, recurse=True)
        for module in model.modules():  # it leaves the plain method behind
            if vars(module).get("forward") == MethodType(type(module).forward, module):
                del vars(module)["forward"]


def _outside(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Modules by name that have tensors of their own and are in no block."""
    blocks: Any = model.get_submodule(blocks_path(model))
    inside = {id(module) for block in blocks for module in block.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) not in inside and next(_own_tensors(module), None) is not None
    }


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
