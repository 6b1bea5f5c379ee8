"""Run one transformer block at a time over the calibration set.

The hidden states of every sequence are kept between blocks, so that a block reads the activations
of the already pruned blocks before it, and only one layer's H is in memory. Each rank holds its own
sequences; sums are over all ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from pruneflow.compute.placement import is_streamed, to_host
from pruneflow.compute.ranks import joined
from pruneflow.models.structure import Layer, matrix
from pruneflow.pruning.token_losses import wide

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _Stop(Exception):
    """Ends a forward pass as soon as the wanted activations are known."""


class Seen(NamedTuple):
    """Input and output of a consumer on one batch.

    Attributes:
        inputs: its input, ``[n, tokens, m]``.
        after: the hidden states once its output is added to them, ``[n, tokens, d]``; the output
            alone in families that normalise it first.
    """

    inputs: torch.Tensor
    after: torch.Tensor


class BlockStream:
    """Boundary activations of a calibration set, moved forward block by block.

    Args:
        model: the model whose blocks are run; they may be cut between calls.
        layers: its blocks, in order.
        batches: tokens of each batch, ``[n, tokens]`` without padding.
        keep_on_device: leave the hidden states on the device of the block that made them, where
            they fit, instead of moving them to the CPU between blocks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: list[Layer],
        batches: list[torch.Tensor],
        keep_on_device: bool = False,
    ) -> None:
        self._near = keep_on_device
        # Masks and positions depend on a batch's shape and, in some families, on the layer.
        self._arguments: dict[tuple[int, ...], list[Arguments]] = {}
        self._states: list[torch.Tensor] = []
        for batch in batches:
            state, arguments = _entering(model, layers, batch)
            self._arguments.setdefault(tuple(batch.shape), arguments)
            self._states.append(self._kept(state))

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Each batch's hidden states that enter the next block, ``[n, tokens, d]``."""
        return iter(self._states)

    def inputs(self, layer: Layer, consumer: Any) -> Iterator[torch.Tensor]:
        """Each batch's input of a consumer of the next block, ``[n, tokens, m]``, on the device."""
        caught: list[torch.Tensor] = []

        def catch(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            caught.append(arguments[0])
            raise _Stop  # nothing after the consumer's input is needed

        for state in self._states:
            with consumer.register_forward_pre_hook(catch), suppress(_Stop):
                self._look(layer, state)
            x = caught.pop()
            yield x.reshape(*state.shape[:2], -1)  # OPT's MLP sees all tokens in one row

    def seen(self, layer: Layer, kind: str, leave: bool = False) -> Iterator[Seen]:
        """Input and output of the consumer of a kind of units in the next block, by batch.

        Args:
            layer: the next block.
            kind: ``heads`` or ``neurons``.
            leave: also advance past the block, as `advance` does; only if it does not change after.
        """
        attention = layer.attention_consumer
        consumer = attention if kind == "heads" else layer.mlp_consumer
        caught: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

        def catch(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> None:
            caught[module] = arguments[0], output
            if module is consumer and not leave:
                raise _Stop  # nothing after the consumer is needed

        for index, state in enumerate(self._states):
            with ExitStack() as hooks, suppress(_Stop):
                for module in {attention, consumer}:
                    hooks.enter_context(module.register_forward_hook(catch))
                self._states[index] = self._kept(self._look(layer, state))
            shape = (*state.shape[:2], -1)  # OPT's MLP sees all tokens in one row
            x, output = (tensor.reshape(shape) for tensor in caught[consumer])
            if layer.adds_plainly:
                output = output + state.to(output.device, non_blocking=True)
                if kind == "neurons":  # by then attention's output has been added too
                    output = output + caught[attention][1].reshape(shape)
            caught.clear()
            yield Seen(x, output)

    def gram(self, layer: Layer, consumer: Any) -> torch.Tensor:
        """``H = X^T X`` of a consumer's input over all ranks' batches, ``[m, m]`` float64."""
        channels = matrix(consumer).shape[1]
        total = torch.zeros(channels, channels, dtype=torch.double, device=layer.device)
        for x in self.inputs(layer, consumer):
            rows = wide(x.flatten(0, -2))
            total += rows.T @ rows
        return joined().sum(total)

    def advance(self, layer: Layer, before: Callable[[int], None] | None = None) -> None:
        """Replace every sequence's hidden states by the output of the next block.

        `before` is called with each batch's number before the block is run on it.
        """
        for index, state in enumerate(self._states):  # one at a time: old and new never all at once
            if before is not None:
                before(index)
            self._states[index] = self._kept(self._look(layer, state))

    def _look(self, layer: Layer, state: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.run(layer, state)

    def _kept(self, state: torch.Tensor) -> torch.Tensor:
        return state if self._near else to_host(state)

    def run(self, layer: Layer, state: torch.Tensor) -> torch.Tensor:
        """A block's output for hidden states ``[n, tokens, d]``, on the block's device."""
        positional, keywords = self._arguments[tuple(state.shape[:2])][layer.index]
        output = layer.module(state.to(layer.device, non_blocking=True), *positional, **keywords)
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return hidden


def split(tokens: torch.Tensor, batch_tokens: int) -> list[torch.Tensor]:
    """Batches of a set ``[sequences, tokens]``: at most `batch_tokens` each, or one sequence."""
    return list(tokens.split(max(1, batch_tokens // tokens.shape[1])))


def fits_on_device(model: PreTrainedModel, batches: list[torch.Tensor]) -> bool:
    """Whether the hidden states of a set may stay on the device while its blocks are run.

    For a streamed model, only if two streams of them leave most of the device's memory free.
    """
    if not is_streamed(model) or model.device.type != "cuda":
        return True
    tokens = sum(batch.numel() for batch in batches)
    size = 2 * tokens * model.config.hidden_size * model.dtype.itemsize
    return bool(size < torch.cuda.mem_get_info(model.device)[0] / 8)


def logits_of(
    model: PreTrainedModel, layers: list[Layer], tokens: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """Logits ``[n, tokens, V]`` of the last block's output ``[n, tokens, d]``; no block is run.

    `tokens` are ``[n, tokens]``; all are on the model's device.
    """
    with _passed_over(layers, last):
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def _entering(
    model: PreTrainedModel, layers: list[Layer], batch: torch.Tensor
) -> tuple[torch.Tensor, list[Arguments]]:
    """Hidden states that enter the first block, and the other arguments of each block."""
    with torch.no_grad(), _passed_over(layers) as caught:
        model.base_model(input_ids=batch.to(model.device), use_cache=False)
    return caught[0][0], [arguments for _, arguments in caught]


@contextmanager
def _passed_over(
    layers: list[Layer], last: torch.Tensor | None = None
) -> Iterator[list[tuple[torch.Tensor, Arguments]]]:
    """Skip the blocks within the context: each returns its input, or `last` for the last one.

    Yields:
        For each block that was called, the hidden states it was given and the other arguments.
    """
    caught: list[tuple[torch.Tensor, Arguments]] = []

    def hand_on(*positional: Any, **keywords: Any) -> torch.Tensor:
        hidden = positional[0] if positional else keywords.pop("hidden_states")
        caught.append((hidden, (positional[1:], keywords)))
        return last if last is not None and len(caught) == len(layers) else hidden

    for layer in layers:
        vars(layer.module)["forward"] = hand_on
    try:
        yield caught
    finally:
        for layer in layers:
            del vars(layer.module)["forward"]
