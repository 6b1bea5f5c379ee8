"""Run one transformer block at a time over the calibration set.

The hidden states of every sequence are kept between blocks, so that a block is seen with the
activations of the already pruned blocks before it, and only one layer's H is in memory.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruneflow.models.structure import Layer

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Stop(Exception):
    """Ends a forward pass once what it is run for is known."""


class Seen(NamedTuple):
    """What a consumer does with one batch.

    Attributes:
        inputs: what it reads, ``[n, tokens, m]``.
        after: the hidden states once its output is added to them, ``[n, tokens, d]``; the output
            alone in families that normalise it first.
    """

    inputs: "torch.Tensor"
    after: "torch.Tensor"


class BlockStream:
    """Boundary activations of a calibration set, moved forward block by block.

    Args:
        model: the model whose blocks are run; they may be cut between calls.
        layers: its blocks, in order.
        tokens: ``[sequences, tokens]`` without padding.
        batch_tokens: tokens in one batch.
        keep_on_device: leave the hidden states on the model's device, where they fit, instead of
            moving them to the CPU between blocks.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        layers: "list[Layer]",
        tokens: "torch.Tensor",
        batch_tokens: int,
        keep_on_device: bool = False,
    ) -> None:
        batches = tokens.split(max(1, batch_tokens // tokens.shape[1]))
        self._device = model.device
        self._home = model.device if keep_on_device else "cpu"
        # Masks and positions depend on a batch's shape and, in some families, on the layer.
        self._arguments: dict[int, list[Arguments]] = {}
        for batch in batches:
            if len(batch) not in self._arguments:
                self._arguments[len(batch)] = _block_arguments(model, layers, batch)
        self._states = [_first_input(model, layers[0], batch).to(self._home) for batch in batches]

    def __iter__(self) -> "Iterator[torch.Tensor]":
        """Each batch's hidden states that enter the next block, ``[n, tokens, d]``."""
        return iter(self._states)

    def inputs(self, layer: "Layer", consumer: Any) -> "Iterator[torch.Tensor]":
        """Each batch's input of a consumer of the next block, ``[n, tokens, m]``, on the device."""
        caught: list[torch.Tensor] = []

        def catch(_module: Any, arguments: "tuple[torch.Tensor, ...]") -> None:
            caught.append(arguments[0])
            raise _Stop  # nothing behind the consumer's input is needed

        for state in self._states:
            handle = consumer.register_forward_pre_hook(catch)
            try:
                with suppress(_Stop):
                    self._run(layer, state)
            finally:
                handle.remove()
            x = caught.pop()
            yield x.reshape(*state.shape[:2], -1)  # OPT's MLP sees all tokens in one row

    def seen(self, layer: "Layer", kind: Literal["heads", "neurons"]) -> "Iterator[Seen]":
        """What the consumer of a kind of units reads and leaves in the next block, by batch."""
        import torch

        attention = layer.attention_consumer
        consumer = attention if kind == "heads" else layer.mlp_consumer
        caught: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

        def catch(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> None:
            caught[module] = arguments[0], output
            if module is consumer:
                raise _Stop  # nothing behind the consumer is needed

        for state in self._states:
            handles = [module.register_forward_hook(catch) for module in {attention, consumer}]
            try:
                with suppress(_Stop):
                    self._run(layer, state)
            finally:
                for handle in handles:
                    handle.remove()
            shape = (*state.shape[:2], -1)  # OPT's MLP sees all tokens in one row
            x, output = (tensor.reshape(shape) for tensor in caught[consumer])
            if layer.adds_plainly:
                output = output + state.to(self._device)
                if kind == "neurons":  # by then attention's output has been added too
                    output = output + caught[attention][1].reshape(shape)
            caught.clear()
            yield Seen(x, output)

    def gram(self, layer: "Layer", consumer: Any) -> "torch.Tensor":
        """``H = X^T X`` of a consumer's input over the whole set, ``[m, m]``, float32 or wider."""
        import torch

        from pruneflow.pruning.statistics import wide

        total: torch.Tensor | None = None
        for x in self.inputs(layer, consumer):
            rows = wide(x.flatten(0, -2))
            total = rows.T @ rows if total is None else total.addmm_(rows.T, rows)
        assert total is not None  # a calibration set has sequences
        return total

    def advance(self, layer: "Layer") -> None:
        """Replace every sequence's hidden states by the block's output."""
        for index, state in enumerate(self._states):  # one at a time: old and new never all at once
            self._states[index] = self._run(layer, state).to(self._home)

    def _run(self, layer: "Layer", state: "torch.Tensor") -> "torch.Tensor":
        import torch

        positional, keywords = self._arguments[len(state)][layer.index]
        with torch.no_grad():
            output = layer.module(state.to(self._device), *positional, **keywords)
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return hidden


def _block_arguments(
    model: "PreTrainedModel", layers: "list[Layer]", batch: "torch.Tensor"
) -> list[Arguments]:
    """What the model hands to each block beside the hidden states, for a batch of this shape."""
    import torch

    caught: list[Arguments] = []

    def catch(_module: Any, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        rest = {key: value for key, value in keywords.items() if key != "hidden_states"}
        caught.append((positional[1:], rest))

    handles = [layer.module.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return caught


def _first_input(model: "PreTrainedModel", first: "Layer", batch: "torch.Tensor") -> "torch.Tensor":
    """Hidden states that enter the first block, ``[n, tokens, d]``."""
    import torch

    caught: list[torch.Tensor] = []

    def catch(_module: Any, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        caught.append(positional[0] if positional else keywords["hidden_states"])
        raise _Stop

    handle = first.module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad(), suppress(_Stop):
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        handle.remove()
    return caught[0]
