"""Run one transformer block at a time over the calibration set.

The hidden states of every sequence are kept between blocks, so that a block is seen with the
activations of the already pruned blocks before it, and only one layer's H is in memory.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pruneflow.pruning.statistics import wide

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruneflow.models.structure import Layer


class _Stop(Exception):
    """Ends a forward pass once what it is run for is known."""


class BlockStream:
    """Boundary activations of a calibration set, moved forward block by block.

    Args:
        model: the model whose blocks are run; they may be cut between calls.
        layers: its blocks, in order.
        tokens: ``[sequences, tokens]`` without padding.
        batch_tokens: tokens in one batch.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        layers: "list[Layer]",
        tokens: "torch.Tensor",
        batch_tokens: int,
    ) -> None:
        batches = tokens.split(max(1, batch_tokens // tokens.shape[1]))
        self._device = model.device
        # Masks and positions depend on a batch's shape and, in some families, on the layer.
        self._arguments: dict[int, list[dict[str, Any]]] = {}
        for batch in batches:
            if len(batch) not in self._arguments:
                self._arguments[len(batch)] = _block_arguments(model, layers, batch)
        self._states = [_first_input(model, layers[0], batch) for batch in batches]

    def gram(self, layer: "Layer", consumer: Any) -> "torch.Tensor":
        """``H = X^T X`` of a consumer's input over the whole set, ``[m, m]``, float32 or wider."""
        import torch

        size = consumer.in_features
        total = wide(torch.zeros(size, size, device=self._device, dtype=consumer.weight.dtype))

        def add(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            x = wide(arguments[0].flatten(0, -2))
            total.addmm_(x.T, x)
            raise _Stop  # nothing behind the consumer's input is needed

        handle = consumer.register_forward_pre_hook(add)
        try:
            for state in self._states:
                with suppress(_Stop):
                    self._run(layer, state)
        finally:
            handle.remove()
        return total

    def advance(self, layer: "Layer") -> None:
        """Replace every sequence's hidden states by the block's output."""
        self._states = [self._run(layer, state) for state in self._states]

    def _run(self, layer: "Layer", state: "torch.Tensor") -> "torch.Tensor":
        import torch

        with torch.no_grad():
            arguments = self._arguments[len(state)][layer.index]
            output = layer.module(state.to(self._device), **arguments)
        return (output[0] if isinstance(output, tuple) else output).cpu()


def _block_arguments(
    model: "PreTrainedModel", layers: "list[Layer]", batch: "torch.Tensor"
) -> list[dict[str, Any]]:
    """Keyword arguments that the model hands to each block for a batch of this shape."""
    import torch

    caught: list[dict[str, Any]] = []

    def catch(_module: Any, _arguments: Any, keywords: dict[str, Any]) -> None:
        caught.append({k: v for k, v in keywords.items() if k != "hidden_states"})

    handles = [layer.module.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return caught


def _first_input(model: "PreTrainedModel", first: "Layer", batch: "torch.Tensor") -> "torch.Tensor":
    """Hidden states that enter the first block, ``[n, tokens, d]`` on the CPU."""
    import torch

    caught: list[torch.Tensor] = []

    def catch(_module: Any, arguments: tuple[torch.Tensor, ...], keywords: dict[str, Any]) -> None:
        caught.append(arguments[0] if arguments else keywords["hidden_states"])
        raise _Stop

    handle = first.module.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        with torch.no_grad(), suppress(_Stop):
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        handle.remove()
    return caught[0].cpu()
