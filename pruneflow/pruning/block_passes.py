"""Run a model over batches, forward and back, block by block.

As in gradient checkpointing at every block (arXiv 1604.06174): the hidden states between blocks are
kept, and a block is run again when its turn in the backward pass comes. One block's activations are
held at a time, and one sequence's logits, which leaves room for larger batches. With a streamed
model, only one block's weights are on the device, hidden states wait in host memory, and batches
run in groups whose states fit there; each group passes all blocks twice.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import psutil
import torch
from transformers import PreTrainedModel

from pruneflow.compute.placement import is_streamed, resident, to_host
from pruneflow.models.structure import Layer
from pruneflow.progress import track
from pruneflow.pruning.block_stream import BlockStream, fits_on_device, logits_of
from pruneflow.pruning.token_losses import GRADIENTS, losses_of, noise
from pruneflow.pruning.unit_recorder import LOSS, Recorder

HOST_SHARE = 0.5  # of the host's free memory, for boundary activations


class Batch(NamedTuple):
    """Sequences that run together.

    Attributes:
        tokens: ``[n, T]`` without padding.
        first: the number of its first sequence in the set.
    """

    tokens: torch.Tensor
    first: int


class Objective(NamedTuple):
    """The loss to differentiate, and the number of draws; see `statistics.collect`."""

    gradient: str
    draws: int
    seed: int

    def value(
        self, logits: torch.Tensor, losses: torch.Tensor, first: int, draw: int
    ) -> torch.Tensor:
        """The number to differentiate: the sum over sequences of the mean over tokens."""
        numbers = noise(losses.shape, self.seed, first, draw).to(losses.device)
        return GRADIENTS[self.gradient](logits, losses, numbers).mean(1).sum()


def pass_by_blocks(
    model: PreTrainedModel,
    layers: list[Layer],
    batches: list[Batch],
    recorder: Recorder,
    objective: Objective,
    label: str,
) -> Iterator[torch.Tensor]:
    """Yield the recorder's vector of each batch, in order."""
    if is_streamed(model):
        for group in _groups(model, layers, batches):
            yield from _group_pass(model, layers, group, recorder, objective, label)
    else:
        for batch in track(batches, label):
            yield from _group_pass(model, layers, [batch], recorder, objective)


def _groups(
    model: PreTrainedModel, layers: list[Layer], batches: list[Batch]
) -> Iterator[list[Batch]]:
    """Batches whose hidden states at all boundaries fit the host's memory together."""
    token = len(layers) * model.config.hidden_size * model.dtype.itemsize
    room = HOST_SHARE * psutil.virtual_memory().available / token
    group: list[Batch] = []
    held = 0
    for batch in batches:
        if group and held + batch.tokens.numel() > room:
            yield group
            group, held = [], 0
        group.append(batch)
        held += batch.tokens.numel()
    if group:
        yield group


def _group_pass(
    model: PreTrainedModel,
    layers: list[Layer],
    batches: list[Batch],
    recorder: Recorder,
    objective: Objective,
    label: str | None = None,
) -> list[torch.Tensor]:
    """Vectors of some batches; with a label, progress by block."""

    def shown(blocks: list[Layer], part: str) -> Iterable[Layer]:
        return track(blocks, f"{label} {part}") if label else blocks

    def watch(index: int) -> None:
        recorder.watch(len(batches[index].tokens), vectors[index])

    vectors = [recorder.blank() for _ in batches]
    tokens_of = [batch.tokens for batch in batches]
    near = fits_on_device(model, tokens_of)
    stream = BlockStream(model, layers, tokens_of, near)
    boundaries: list[list[torch.Tensor]] = []
    for layer in shown(layers, "forward"):
        with resident(layer.module):
            if recorder.wants_gradients:  # seen when the block is run again
                boundaries.append([to_host(x) if is_streamed(model) else x for x in stream])
                stream.advance(layer)
            else:
                with recorder.hooked([layer]):
                    stream.advance(layer, watch)

    # [batch][draw]: gradient of the objective with respect to the current block's output
    gradients: list[list[torch.Tensor]] = []
    for index, (batch, state) in enumerate(zip(batches, stream, strict=True)):
        watch(index)
        last = state.to(model.device)
        gradients.append(_by_last(model, layers, batch, last, recorder, objective))
    if not recorder.wants_gradients:
        return vectors

    for layer in shown(layers[::-1], "backward"):
        states = boundaries.pop()
        with resident(layer.module), recorder.hooked([layer]):
            for index, state in enumerate(states):
                watch(index)
                with torch.enable_grad():
                    before = state.to(layer.device, non_blocking=True).detach().requires_grad_(True)
                    after = stream.run(layer, before)
                for draw, by_after in enumerate(gradients[index]):
                    (by_before,) = torch.autograd.grad(
                        after,
                        before,
                        by_after.to(layer.device, non_blocking=True),
                        retain_graph=draw + 1 < objective.draws,
                    )
                    gradients[index][draw] = by_before if near else to_host(by_before)
    return vectors


def _by_last(
    model: PreTrainedModel,
    layers: list[Layer],
    batch: Batch,
    last: torch.Tensor,
    recorder: Recorder,
    objective: Objective,
) -> list[torch.Tensor]:
    """Record a batch's loss, and differentiate by the last block's output.

    One sequence at a time: with a large vocabulary, logits are the largest tensors of a pass.

    Returns:
        The gradient of each draw, ``[n, T, d]``; none where nothing is differentiated.
    """
    rows: list[list[torch.Tensor]] = []
    for row, tokens in enumerate(batch.tokens.to(model.device).split(1)):
        with torch.set_grad_enabled(recorder.wants_gradients):
            own = last[row : row + 1].detach().requires_grad_(recorder.wants_gradients)
            logits, losses = losses_of(logits_of(model, layers, tokens, own), tokens)
            recorder.add(LOSS, losses.detach().double().mean(1).sum())
            # Not backward(): that would store gradients of any weight that is not frozen.
            rows.append(
                [
                    torch.autograd.grad(
                        objective.value(logits, losses, batch.first + row, draw),
                        own,
                        retain_graph=draw + 1 < objective.draws,
                    )[0]
                    for draw in range(objective.draws if recorder.wants_gradients else 0)
                ]
            )
    return [torch.cat(draw) for draw in zip(*rows, strict=True)]
