"""Run a model over batches, forward and back: whole, or block by block.

Block by block (gradient checkpointing at every block, arXiv 1604.06174): the hidden states between
blocks are kept in host memory, and a block is run again when its turn in the backward pass comes.
One block's weights and activations are on the device at a time. Batches are taken in groups whose
boundary activations fit the host's memory; every group goes through all blocks twice.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pruneflow.models.placement import resident, to_host
from pruneflow.progress import track
from pruneflow.pruning.losses import GRADIENTS, losses_of, noise
from pruneflow.pruning.recorder import LOSS, Recorder
from pruneflow.pruning.stream import BlockStream, fits_on_device, logits_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruneflow.models.structure import Layer

HOST_SHARE = 0.5  # of the host's free memory, for boundary activations


class Batch(NamedTuple):
    """Sequences that run together.

    Attributes:
        tokens: ``[n, T]`` without padding.
        first: the number of its first sequence in the whole set.
    """

    tokens: "torch.Tensor"
    first: int


class Objective(NamedTuple):
    """Whose gradient is taken, and how often; see `statistics.collect`."""

    gradient: str
    draws: int
    seed: int

    def value(
        self, logits: "torch.Tensor", losses: "torch.Tensor", first: int, draw: int
    ) -> "torch.Tensor":
        """The number to differentiate: the sum over sequences of the mean over tokens."""
        numbers = noise(losses.shape, self.seed, first, draw).to(losses.device)
        return GRADIENTS[self.gradient](logits, losses, numbers).mean(1).sum()


def whole_pass(
    model: "PreTrainedModel",
    layers: "list[Layer]",
    batches: list[Batch],
    recorder: Recorder,
    objective: Objective,
    label: str,
) -> "Iterator[torch.Tensor]":
    """What each batch shows, in order: the vector that `recorder` makes of it."""
    import torch

    embedded: list[torch.Tensor] = []

    def start_graph(_module: object, _arguments: object, output: torch.Tensor) -> None:
        """Weights are frozen, so gradients flow from the embedded tokens."""
        embedded[:] = [output.requires_grad_(True)]

    def run(batch: Batch) -> torch.Tensor:
        """A function, so that a batch's graph is gone before the next one is built."""
        vector = recorder.blank()
        recorder.watch(len(batch.tokens), vector)
        tokens = batch.tokens.to(model.device)
        logits, losses = losses_of(model(input_ids=tokens, use_cache=False).logits, tokens)
        _finish(batch, logits, losses, embedded, recorder, objective)
        return vector

    hook = None
    if recorder.wants_gradients:
        hook = model.get_input_embeddings().register_forward_hook(start_graph)
    try:
        for batch in track(batches, label):
            with recorder.hooked(layers), torch.set_grad_enabled(recorder.wants_gradients):
                vector = run(batch)
            yield vector
    finally:
        if hook is not None:
            hook.remove()


def streamed_pass(
    model: "PreTrainedModel",
    layers: "list[Layer]",
    batches: list[Batch],
    recorder: Recorder,
    objective: Objective,
    label: str,
) -> "Iterator[torch.Tensor]":
    """The same, block by block, with one block's weights and activations on the device."""
    for group in _groups(model, layers, batches):
        yield from _group_pass(model, layers, group, recorder, objective, label)


def _groups(
    model: "PreTrainedModel", layers: "list[Layer]", batches: list[Batch]
) -> Iterator[list[Batch]]:
    """Batches whose hidden states at all boundaries fit the host's memory together."""
    import psutil

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
    model: "PreTrainedModel",
    layers: "list[Layer]",
    batches: list[Batch],
    recorder: Recorder,
    objective: Objective,
    label: str,
) -> "list[torch.Tensor]":
    import torch

    vectors = [recorder.blank() for _ in batches]
    tokens_of = [batch.tokens for batch in batches]
    near = fits_on_device(model, tokens_of)
    stream = BlockStream(model, layers, tokens_of, near)
    boundaries: list[list[torch.Tensor]] = []
    for layer in track(layers, f"{label} forward"):
        with resident(layer.module):
            if recorder.wants_gradients:
                boundaries.append([to_host(state) for state in stream])
            else:
                _see(stream, layer, recorder, batches, vectors)
            stream.advance(layer)

    # [batch][draw]: the objective's gradient by the hidden states after the block under way
    gradients: list[list[torch.Tensor]] = []
    for batch, state, vector in zip(batches, stream, vectors, strict=True):
        recorder.watch(len(batch.tokens), vector)
        tokens = batch.tokens.to(model.device)
        with torch.set_grad_enabled(recorder.wants_gradients):
            last = state.to(model.device).detach().requires_grad_(recorder.wants_gradients)
            logits, losses = losses_of(logits_of(model, layers, tokens, last), tokens)
            gradients.append(_finish(batch, logits, losses, [last], recorder, objective))
    if not recorder.wants_gradients:
        return vectors

    for layer in track(layers[::-1], f"{label} backward"):
        states = boundaries.pop()
        with resident(layer.module), recorder.hooked([layer]):
            for index, (batch, state) in enumerate(zip(batches, states, strict=True)):
                recorder.watch(len(batch.tokens), vectors[index])
                with torch.enable_grad():
                    before = state.to(model.device, non_blocking=True).detach().requires_grad_(True)
                    after = stream.run(layer, before)
                for draw, by_after in enumerate(gradients[index]):
                    (by_before,) = torch.autograd.grad(
                        after,
                        before,
                        by_after.to(model.device, non_blocking=True),
                        retain_graph=draw + 1 < objective.draws,
                    )
                    gradients[index][draw] = by_before if near else to_host(by_before)
    return vectors


def _finish(
    batch: Batch,
    logits: "torch.Tensor",
    losses: "torch.Tensor",
    inputs: "list[torch.Tensor]",
    recorder: Recorder,
    objective: Objective,
) -> "list[torch.Tensor]":
    """Record a batch's loss, and differentiate by the one tensor of `inputs`, once a draw."""
    import torch

    recorder.add(LOSS, losses.detach().double().mean(1).sum())
    # Not backward(): that would store gradients of the embeddings and of any weight that is not
    # frozen.
    return [
        torch.autograd.grad(
            objective.value(logits, losses, batch.first, draw),
            inputs,
            retain_graph=draw + 1 < objective.draws,
        )[0]
        for draw in range(objective.draws if recorder.wants_gradients else 0)
    ]


def _see(
    stream: BlockStream,
    layer: "Layer",
    recorder: Recorder,
    batches: list[Batch],
    vectors: "list[torch.Tensor]",
) -> None:
    """Let the recorder see a block run, where no backward pass will run it again."""
    import torch

    with recorder.hooked([layer]), torch.no_grad():
        for batch, state, vector in zip(batches, stream, vectors, strict=True):
            recorder.watch(len(batch.tokens), vector)
            stream.run(layer, state)
