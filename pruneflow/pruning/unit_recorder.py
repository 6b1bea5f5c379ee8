"""Statistics of every unit on one batch, recorded by hooks while the model runs."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Any, get_args

import torch

from pruneflow.models.structure import Kind, Layer, Member, matrix
from pruneflow.pruning.token_losses import wide

# Units that can be removed. Heads are query heads; a KV group includes its query heads.
KINDS = get_args(Kind)

# Statistics that a pass can record. Activations alone need no backward pass.
ACTIVATIONS = "activations"
MASKS = "masks"
WEIGHT_GRADIENTS = "weight_gradients"

# Quantities of each, and the kinds of units they are recorded for.
QUANTITIES = {
    ACTIVATIONS: (("x", "x_squared"), ("neurons", "columns")),
    MASKS: (("z_squared", "z_absolute"), KINDS),
    WEIGHT_GRADIENTS: (("weight_gradient",), KINDS),
}
LOSS = ("loss", "text", -1)


class Recorder:
    """Hooks that add the statistics of the current batch to one vector.

    Args:
        layers: the model's blocks.
        needs: which of `ACTIVATIONS`, `MASKS` and `WEIGHT_GRADIENTS` to record.
        draws: backward passes of each batch, averaged.
        device: of the vectors.

    Attributes:
        parts: slice of the vector for each (quantity, kind, layer).
    """

    def __init__(
        self, layers: Sequence[Layer], needs: Collection[str], draws: int, device: Any
    ) -> None:
        self.needs, self.draws = frozenset(needs), draws
        self._device, self._sequences = device, 0
        counts = {LOSS: 1}
        for layer in layers:
            for need, quantities_and_kinds in QUANTITIES.items():
                if need in self.needs:
                    for quantity, kind in product(*quantities_and_kinds):
                        counts[quantity, kind, layer.index] = _count(layer, kind)
        self.parts: dict[tuple[str, str, int], slice] = {}
        self._size = 0
        for key, count in counts.items():
            self.parts[key] = slice(self._size, self._size + count)
            self._size += count
        self.vector = self.blank()

    @property
    def wants_gradients(self) -> bool:
        """Whether a backward pass is needed."""
        return not self.needs.isdisjoint((MASKS, WEIGHT_GRADIENTS))

    def blank(self) -> torch.Tensor:
        """A float64 vector of zeros."""
        return torch.zeros(self._size, dtype=torch.double, device=self._device)

    def watch(self, sequences: int, vector: torch.Tensor) -> None:
        """Record the next batch, of so many sequences, into `vector`."""
        self._sequences, self.vector = sequences, vector

    def add(self, key: tuple[str, str, int], values: torch.Tensor) -> None:
        """Add float64 values ``[units]`` to the current batch's vector."""
        self.vector[self.parts[key]] += values.to(self.vector.device)

    @contextmanager
    def hooked(self, layers: Sequence[Layer]) -> Iterator[None]:
        """Record every run of these blocks within the context."""
        with ExitStack() as hooks:
            for layer in layers:
                if not self.needs.isdisjoint((ACTIVATIONS, MASKS)):
                    self._watch_consumers(layer, hooks)
                if WEIGHT_GRADIENTS in self.needs:
                    self._watch_linears(layer, hooks)
            yield

    def _watch_consumers(self, layer: Layer, hooks: ExitStack) -> None:
        """Record the inputs of both consumers and, for masks, their gradients."""

        def watch(channels: str, split: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> Any:
            def before(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
                x = arguments[0]
                # A hook that held x itself would keep the autograd graph alive.
                values = x.detach().reshape(self._sequences, -1, x.shape[-1])
                if ACTIVATIONS in self.needs:
                    norms = torch.linalg.vector_norm(values, dim=(0, 1), dtype=torch.double)
                    self.add(("x_squared", channels, layer.index), norms.square())
                    totals = values.sum((0, 1), dtype=torch.double)
                    self.add(("x", channels, layer.index), totals)

                def on_gradient(gradient: torch.Tensor) -> None:
                    z = (wide(values) * gradient.reshape(values.shape)).sum(1).double()
                    for kind, units in split(z).items():
                        squares = units.square().sum(0) / self.draws
                        self.add(("z_squared", kind, layer.index), squares)
                        absolute = units.abs().sum(0) / self.draws
                        self.add(("z_absolute", kind, layer.index), absolute)

                if MASKS in self.needs:
                    x.register_hook(on_gradient)

            return before

        mlp = watch("neurons", lambda z: {"neurons": z})
        attention = watch("columns", lambda z: sum_columns(z, layer))
        hooks.enter_context(layer.mlp_consumer.register_forward_pre_hook(mlp))
        hooks.enter_context(layer.attention_consumer.register_forward_pre_hook(attention))

    def _watch_linears(self, layer: Layer, hooks: ExitStack) -> None:
        """Record the input of every linear layer of a unit, and the gradient of its output.

        A weight's gradient on one sequence is ``d^T x`` with ``d [T, out]`` the gradient of the
        output and ``x [T, in]`` the input; only one such matrix is held at a time.
        """
        owners: dict[Any, list[tuple[str, Member]]] = {}
        for kind in KINDS:
            for member in layer.members(kind):
                owners.setdefault(member.linear, []).append((kind, member))

        def watch(linear: Any, members: list[tuple[str, Member]]) -> Any:
            def after(_module: Any, arguments: tuple[torch.Tensor, ...], output: Any) -> None:
                x = arguments[0].detach()
                x = x.reshape(self._sequences, -1, x.shape[-1])

                def on_gradient(gradient: torch.Tensor) -> None:
                    weight = matrix(linear).detach()
                    d = gradient.reshape(self._sequences, -1, gradient.shape[-1])
                    sums = {
                        axis: torch.zeros(size, dtype=torch.double, device=gradient.device)
                        for axis, size in zip(("out", "in"), weight.shape, strict=True)
                    }
                    for inputs, gradients in zip(x, d, strict=True):
                        products = (wide(gradients).T @ wide(inputs)).mul_(weight).abs_()
                        sums["out"] += products.sum(1, dtype=torch.double)
                        sums["in"] += products.sum(0, dtype=torch.double)
                    for kind, member in members:
                        units = member.units.cpu()
                        # On the CPU, where adding by index has one order.
                        by_unit = torch.zeros(_count(layer, kind), dtype=torch.double)
                        by_channel = sums[member.axis].cpu()[units >= 0]
                        by_unit.index_add_(0, units[units >= 0], by_channel)
                        self.add(("weight_gradient", kind, layer.index), by_unit / self.draws)

                output.register_hook(on_gradient)

            return after

        for linear, members in owners.items():
            hooks.enter_context(linear.register_forward_hook(watch(linear, members)))


def _count(layer: Layer, kind: str) -> int:
    """How many numbers a quantity of a kind has in a layer."""
    return layer.heads * layer.head_dim if kind == "columns" else int(getattr(layer, kind))


def sum_columns(columns: torch.Tensor, layer: Layer) -> dict[str, torch.Tensor]:
    """Sums over an attention consumer's columns ``[..., m]`` by head and by KV group."""
    heads = columns.unflatten(-1, (layer.heads, -1)).sum(-1)
    return {"heads": heads, "kv_groups": heads.unflatten(-1, (layer.kv_groups, -1)).sum(-1)}
