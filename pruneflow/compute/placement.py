"""Placement of a model's weights: on one device, spread over several, or streamed from the host.

A streamed model has its embeddings, final norm and head on the device. Each block's weights are
loaded before its forward pass and released after it, so the device memory does not grow with depth.
The model's own forward pass works unchanged; a backward pass needs `resident`, which keeps a block
on the device (pruneflow.pruning.block_passes). On a CPU nothing moves, and no memory is saved.

A spread model has some of its blocks on each device, and everything else on the first; inputs are
sent to the device of each part. Its `hf_device_map` is that of accelerate and transformers, so a
model loaded with ``device_map="auto"`` counts as spread, too.
"""

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
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

DeviceMap = dict[str, Any]  # device by module name

WEIGHTS_SHARE = 2 / 3  # of a GPU's free memory for weights; the rest is for activations


def place_by_settings(
    model: PreTrainedModel, compute: ComputeSettings, device: str
) -> PreTrainedModel:
    """Place a model by `compute.placement`; `auto` is whole, else spread, else streamed.

    Its tensors are moved in place. `device` is ``cpu`` or ``cuda``, for all GPUs of this rank.

    Raises:
        InputError: placement is `spread`, and the weights do not fit the GPUs.
    """
    placement = compute.placement
    if device == "cpu":
        return place(model, device, streamed=placement == "streamed")
    gpus, weights = own_gpus(), tensor_bytes(model)
    if placement == "auto" and weights <= WEIGHTS_SHARE * free_memory(gpus[0]):
        placement = "whole"
    if placement in ("auto", "spread"):
        free = min(map(free_memory, gpus))  # each holds an equal share
        if placement == "auto":
            placement = "spread" if weights <= WEIGHTS_SHARE * free * len(gpus) else "streamed"
        elif weights > free * len(gpus):
            raise InputError(
                f"compute.placement is spread, and {weights / 2**30:.1f} GiB of weights do not fit "
                f"{len(gpus)} GPU(s) with {free / 2**30:.1f} GiB free on the fullest: set it to "
                "streamed"
            )
    if placement == "spread" and len(gpus) > 1:
        return place(model, spread_over(model, [f"cuda:{gpu}" for gpu in gpus]))
    return place(model, f"cuda:{gpus[0]}", streamed=placement == "streamed")


def spread_over(model: PreTrainedModel, devices: list[str]) -> DeviceMap:
    """A device map with an equal share of the weights per device; non-blocks are on the first."""
    path = blocks_path(model)
    blocks: Any = model.get_submodule(path)
    device_map = dict.fromkeys(_outside(model), devices[0])
    share = tensor_bytes(model) / len(devices)
    before = tensor_bytes(model) - sum(tensor_bytes(block) for block in blocks)
    for index, block in enumerate(blocks):
        size = tensor_bytes(block)
        position = int((before + size / 2) / share)
        device_map[f"{path}.{index}"] = devices[min(position, len(devices) - 1)]
        before += size
    return device_map


def place(
    model: PreTrainedModel, where: str | DeviceMap, *, streamed: bool = False
) -> PreTrainedModel:
    """Move a model to one or several devices; replaces an earlier placement.

    Args:
        model: its tensors are moved in place.
        where: ``cpu``, ``cuda``, one GPU such as ``cuda:1``, or a device map.
        streamed: keep the blocks in host memory, and load them to the one device as they run.

    Raises:
        InputError: a device map leaves weights in host memory or on disk, or splits a block.
    """
    placed: Any = model
    path = blocks_path(model)
    if isinstance(where, dict):
        _check_map(where, path)
    _remove_hooks(model)
    if isinstance(where, dict):
        _spread(model, where)
    elif not streamed:
        placed.to(where)
    else:
        for module in _outside(model).values():
            for tensor in _tensors(module, recurse=False):
                tensor.data = tensor.data.to(where)
        for block in placed.get_submodule(path):
            for tensor in _tensors(block):
                tensor.data = tensor.data.cpu()
                if where != "cpu":
                    tensor.data = tensor.data.pin_memory()
            block.loader = _BlockLoader(model.device, block)
    placed.is_streamed = streamed
    return model


def place_like(model: PreTrainedModel, other: PreTrainedModel) -> PreTrainedModel:
    """Place a model like another, or like itself: then our hooks replace those of accelerate.

    Raises:
        InputError: as `place`.
    """
    device_map = getattr(other, "hf_device_map", None)
    return place(model, device_map or str(other.device), streamed=is_streamed(other))


def blocks_path(model: PreTrainedModel) -> str:
    """Name of a model's list of transformer blocks: its first, outermost ``nn.ModuleList``."""
    return next(name for name, part in model.named_modules() if isinstance(part, ModuleList))


def placement_of(model: PreTrainedModel) -> str:
    """``whole``, ``spread`` or ``streamed``."""
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    return "streamed" if is_streamed(model) else "spread" if spread else "whole"


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a model or module."""
    return sum(tensor.nbytes for tensor in _tensors(module))


def free_memory(gpu: int) -> int:
    """Free bytes on a GPU, after releasing memory that this process no longer needs."""
    gc.collect()  # streamed models and those placed by accelerate are in reference cycles
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(gpu)[0]


def is_streamed(model: PreTrainedModel) -> bool:
    """Whether a model's blocks are loaded to its device one at a time."""
    return bool(getattr(model, "is_streamed", False))


@contextmanager
def resident(block: nn.Module, changed: bool = False) -> Iterator[None]:
    """Keep a block's weights on the device; does nothing if the model is not streamed.

    `changed` says that its weights change within the context and must be copied back.
    """
    loader = getattr(block, "loader", None)
    if loader is None:
        yield
        return
    loader.load()
    try:
        yield
    finally:
        loader.release(changed)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory, which is fast to copy back to the device.

    The copy is asynchronous: only later work on the device's stream may rely on it.
    """
    if tensor.device.type == "cpu":
        return tensor
    copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


class _BlockLoader:
    """Loads one block's weights to the device, and puts the host's copy back afterwards."""

    def __init__(self, device: Any, block: nn.Module) -> None:
        self.device, self.block = device, block
        self.users = 0
        self.host_data: dict[Tensor, Tensor] = {}
        self.hooks = [
            block.register_forward_pre_hook(lambda *_: self.load()),
            block.register_forward_hook(lambda *_: self.release(), always_call=True),
        ]

    def __deepcopy__(self, _memo: Any) -> Self:
        return self  # a copy of the block only runs while the block itself is loaded

    def load(self) -> None:
        self.users += 1
        if self.users > 1 or "forward" in vars(self.block):  # a replaced forward skips the block
            return
        for tensor in _tensors(self.block):
            if tensor.device != self.device:
                self.host_data[tensor] = tensor.data
                tensor.data = tensor.data.to(self.device, non_blocking=True)

    def release(self, changed: bool = False) -> None:
        self.users -= 1
        if self.users:
            return
        for tensor in _tensors(self.block):
            before = self.host_data.pop(tensor, None)
            tensor.data = to_host(tensor.data) if before is None or changed else before
        self.host_data.clear()  # tensors that pruning has replaced since
        if changed and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _spread(model: PreTrainedModel, device_map: DeviceMap) -> None:
    placed: Any = model
    skip: Any = placed._skip_keys_device_placement  # KV caches stay with their blocks

    def sent_to(device: Any) -> Callable[..., Any]:
        def send(_module: Any, args: Any, kwargs: Any) -> Any:
            return send_to_device(args, device), send_to_device(kwargs, device, skip_keys=skip)

        return send

    hooks = []
    for name, device in device_map.items():
        part = model.get_submodule(name)
        for tensor in _tensors(part):
            tensor.data = tensor.data.to(device)
        hooks.append(part.register_forward_pre_hook(sent_to(device), with_kwargs=True))
    first = str(model.device)  # logits are returned on the device of the tokens
    head: Any = model.get_output_embeddings()
    hooks.append(head.register_forward_hook(lambda _module, _args, logits: logits.to(first)))
    placed.hf_device_map, placed.spread_hooks = device_map, hooks


def _check_map(device_map: DeviceMap, path: str) -> None:
    devices = {str(device) for device in device_map.values()}
    if devices & {"disk", "meta"} or ("cpu" in devices and len(devices) > 1):
        raise InputError(
            "the model's device map leaves weights in host memory or on disk, which cannot be "
            "pruned: load it with pruneflow.load_model, which streams models larger than the GPUs"
        )
    by_block: dict[str, set[str]] = defaultdict(set)
    for name, device in device_map.items():
        if name.startswith(f"{path}."):
            by_block[name.removeprefix(f"{path}.").partition(".")[0]].add(str(device))
    for index, found in by_block.items():
        if len(found) > 1:
            raise InputError(
                f"the model's device map splits {path}.{index} over {', '.join(sorted(found))}: "
                "keep each block on one device, or load the model with pruneflow.load_model"
            )


def _remove_hooks(model: PreTrainedModel) -> None:
    blocks: Any = model.get_submodule(blocks_path(model))
    for block in blocks:
        if (loader := vars(block).pop("loader", None)) is not None:
            for hook in loader.hooks:
                hook.remove()
    for hook in vars(model).pop("spread_hooks", ()):
        hook.remove()
    if vars(model).pop("hf_device_map", None):
        remove_hook_from_module(model, recurse=True)
        for module in model.modules():  # accelerate leaves the plain method as an attribute
            if vars(module).get("forward") == MethodType(type(module).forward, module):
                del vars(module)["forward"]


def _outside(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Modules outside the blocks that have tensors of their own, by name."""
    blocks: Any = model.get_submodule(blocks_path(model))
    inside = {id(module) for block in blocks for module in block.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) not in inside and any(True for _ in _tensors(module, recurse=False))
    }


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    return chain(module.parameters(recurse), module.buffers(recurse))
