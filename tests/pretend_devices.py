"""GPUs that are not there: tensors stay in memory, and say that they are where they were sent.

As on real ones, what is on two devices cannot meet: a test sees the mistake that would otherwise
show on a machine with several GPUs alone. What autograd makes itself is on no device, and meets
any.
"""

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
ANY_DEVICE = (  # they bring values from elsewhere, or ask whether they could
    torch.Tensor.copy_,
    torch.Tensor.data.__set__,
    torch._has_compatible_shallow_copy_type,
)
INDICES = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)  # indices may stay on the CPU


class PretendDevices(TorchFunctionMode):
    """Within it, ``cuda:0``, ``cuda:1`` and so on are there.

    Attributes:
        peak: most bytes that were on each device at a time, autograd's own left aside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak: dict[torch.device, int] = {}
        self._held: Counter[torch.device] = Counter()

    def _put(self, tensor: torch.Tensor, place: torch.device) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if (before := getattr(storage, "leave", None)) is not None:
            before()
        storage.where = place
        self._held[place] += size
        self.peak[place] = max(self.peak.get(place, 0), self._held[place])
        storage.leave = weakref.finalize(storage, self._held.subtract, {place: size})

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return _where(args[0]) or CPU
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return self._sent(func, args, kwargs)
        asked = kwargs.pop("device", None)
        kwargs.pop("pin_memory", None)
        given = list(_tensors((args, kwargs)))
        if func in ANY_DEVICE:
            meeting = [args[:1]]
        elif func.__name__.startswith("_foreach"):  # each by itself; torch sorts them by device
            meeting = list(zip(*(x for x in args if isinstance(x, list | tuple)), strict=True))
        else:
            meeting = [given]
        places = [_places(tensors) for tensors in meeting]
        if func in INDICES and _where(args[0]) != CPU and len(places[0]) > 1:
            places[0].discard(CPU)
        for found in places:
            if len(found) > 1:
                raise RuntimeError(f"{func.__name__}: tensors on {sorted(map(str, found))} meet")
        here = next(iter(places[0]), None) if len(places) == 1 else None
        if func is torch.Tensor.numpy and here not in (None, CPU):
            raise TypeError(f"a tensor on {here} has no numpy array")
        made = func(*args, **kwargs)
        place = _device(asked) if asked is not None else here
        if place is None and not given:
            place = CPU
        if place is not None and func != torch.Tensor.data.__set__:
            for x in _tensors(made):
                if asked is not None or _where(x) is None:
                    self._put(x, place)
        return made

    def _sent(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """What `Tensor.to` or `Tensor.cpu` gives: a copy where the device is another."""
        tensor, *rest = args
        made, before = tensor, _where(tensor)
        if func is torch.Tensor.cpu:
            target = CPU
        elif rest and isinstance(rest[0], torch.Tensor):
            target, made = _where(rest[0]), tensor.to(rest[0].dtype)
        else:
            copied = kwargs.pop("copy", False)
            asked, dtype, _, _ = torch._C._nn._parse_to(*rest, **kwargs)
            target = None if asked is None else _device(asked)
            made = tensor if dtype is None else tensor.to(dtype)
            made = tensor.clone() if copied and made is tensor else made
        target = target or before
        if made is tensor and target != before:
            made = tensor.clone()
        if made is not tensor and target is not None:
            self._put(made, target)
        return made


def pretend_gpus(patch: Any, *free: float) -> None:
    """Let torch tell of GPUs with so many bytes free; `patch` is pytest's monkeypatch."""
    patch.setattr(torch.cuda, "device_count", lambda: len(free))
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    patch.setattr(torch.cuda, "mem_get_info", lambda gpu: (int(free[_device(gpu).index]), 0))
    patch.setattr(torch.cuda, "synchronize", lambda _gpu: None)
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # needs a driver


def _device(asked: Any) -> torch.device:
    device = torch.device("cuda", asked) if isinstance(asked, int) else torch.device(asked)
    return torch.device("cuda", 0) if str(device) == "cuda" else device


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested arguments or results."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _places(tensors: Any) -> set[torch.device]:
    """Where tensors are; the CPU's numbers, which may meet any, and what is nowhere left aside."""
    given = [x for x in tensors if isinstance(x, torch.Tensor)]
    return {place for x in given if (place := _where(x)) is not None and (x.dim() or place != CPU)}


def _where(tensor: torch.Tensor) -> torch.device | None:
    return getattr(tensor.untyped_storage(), "where", None)
