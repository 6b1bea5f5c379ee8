"""One pass over the calibration set: what each unit does to the loss, and what flows through it.

With ``z_tj = x_tj * dL/dx_tj`` at a consumer's input, ``z_j = sum_t z_tj`` is the derivative of a
sequence's loss with respect to a mask on channel j; the mask of a head or KV group covers its
columns, so there z is summed over them. The pass keeps sums over sequences, per domain, and
`pruneflow.pruning.scores` makes every score from them. Weights are frozen: no gradient of a
parameter is ever stored.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from pruneflow.errors import PruneflowError
from pruneflow.models.structure import Kind, layers_of, matrix
from pruneflow.progress import track

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from pruneflow.models.structure import Layer, Member

# Units that can be removed. Heads are query heads; a KV group is worth all of its own.
KINDS = get_args(Kind)

# What a pass can gather. Activations alone need no backward pass.
ACTIVATIONS = "activations"
MASKS = "masks"
WEIGHT_GRADIENTS = "weight_gradients"


@dataclass(frozen=True)
class Statistics:
    """Sums over calibration sequences; those of passes over other sequences can be added.

    Attributes:
        domains: names of the rows.
        sequences: number of sequences, ``[domains]``.
        tokens: number of tokens, ``[domains]``.
        loss: sum over sequences of the mean loss per token, ``[domains]``.
        sums: float64 CPU tensors ``[domains, units]`` by (quantity, kind, layer). Masks give
            ``z_squared`` and ``z_absolute`` of every kind; activations ``x`` and ``x_squared``,
            summed over tokens, of kinds ``neurons`` and ``columns`` (attention consumer's input
            channels); weight gradients ``weight_gradient`` of every kind.
    """

    domains: list[str]
    sequences: "torch.Tensor"
    tokens: "torch.Tensor"
    loss: "torch.Tensor"
    sums: dict[tuple[str, str, int], "torch.Tensor"]

    def __add__(self, other: "Statistics") -> "Statistics":
        """Statistics of both passes' sequences; the domains must be the same, in order."""
        if self.domains != other.domains or self.sums.keys() != other.sums.keys():
            raise ValueError("only statistics of the same domains and quantities can be added")
        return Statistics(
            self.domains,
            self.sequences + other.sequences,
            self.tokens + other.tokens,
            self.loss + other.loss,
            {key: values + other.sums[key] for key, values in self.sums.items()},
        )

    @property
    def losses(self) -> dict[str, float]:
        """Mean loss per token of each domain."""
        return dict(zip(self.domains, (self.loss / self.sequences).tolist(), strict=True))

    def means(self, quantity: str) -> dict[str, list["torch.Tensor"]]:
        """Mean over sequences of a quantity by kind, per layer ``[domains, units]``."""
        layers = range(1 + max(index for _, _, index in self.sums))
        per_sequence = 1 / self.sequences[:, None]
        return {
            kind: [self.sums[quantity, kind, index] * per_sequence for index in layers]
            for kind in KINDS
        }


def collect(
    model: "PreTrainedModel",
    blocks: dict[str, "torch.Tensor"],
    batch_tokens: int,
    label: str,
    *,
    needs: Collection[str] = (ACTIVATIONS, MASKS),
    gradient: str = "text",
    draws: int = 1,
    seed: int = 0,
) -> Statistics:
    """Gather statistics in one forward pass, and one backward pass if `needs` asks for gradients.

    Args:
        model: the model of this round, in evaluation mode; it is left as it was.
        blocks: token ids per domain, ``[sequences, tokens]``, without padding.
        batch_tokens: tokens in one batch. The result does not depend on it but for rounding: a
            sequence's loss is the mean over its own tokens, and sequences do not see each other.
        label: names the progress bar.
        needs: which of `ACTIVATIONS`, `MASKS` and `WEIGHT_GRADIENTS` to gather.
        gradient: whose gradient is taken; a name in `GRADIENTS`.
        draws: backward passes of each batch, averaged; more than one serves random gradients.
        seed: of the random gradients.

    Raises:
        PruneflowError: a loss or a sum is NaN or infinite.
    """
    import torch

    backward = not {MASKS, WEIGHT_GRADIENTS}.isdisjoint(needs)
    recorder = _Recorder(len(blocks), draws)
    hooks: list[Any] = []
    batches, first = [], 0
    for row, tokens in enumerate(blocks.values()):
        for batch in tokens.split(max(1, batch_tokens // tokens.shape[1])):
            batches.append((row, first, batch))
            first += len(batch)
    loss = torch.zeros(len(blocks), dtype=torch.double)

    def run(row: int, first: int, batch: torch.Tensor) -> None:
        """A function, so that a batch's graph is gone before the next one is built."""
        recorder.domain, recorder.batch = row, len(batch)
        tokens = batch.to(model.device)
        logits, by_token = _token_losses(model, tokens)
        loss[row] += float(by_token.detach().double().mean(1).sum())
        for draw in range(draws if backward else 0):
            noise = _noise(by_token.shape, seed, first, draw).to(by_token.device)
            objective = GRADIENTS[gradient](logits, by_token, noise).mean(1).sum()
            # Not backward(): that would store gradients of the embeddings and of any weight that
            # is not frozen.
            torch.autograd.grad(objective, recorder.embedded, retain_graph=draw + 1 < draws)

    try:
        if backward:
            hooks.append(model.get_input_embeddings().register_forward_hook(recorder.start_graph))
        for layer in layers_of(model):
            hooks += recorder.watch_consumers(layer, needs)
            if WEIGHT_GRADIENTS in needs:
                hooks += recorder.watch_linears(layer)
        with torch.set_grad_enabled(backward):
            for row, first, batch in track(batches, label):
                run(row, first, batch)
    finally:
        for hook in hooks:
            hook.remove()

    sums = {key: values.cpu() for key, values in recorder.sums.items()}
    for (quantity, kind, index), values in [(("loss", "text", -1), loss), *sums.items()]:
        if not bool(torch.isfinite(values).all()):
            place = f"layer {index}'s {kind}" if index >= 0 else "the calibration text"
            raise PruneflowError(
                f"{label}: {quantity} of {place} is NaN or infinite: check the model's weights, "
                "and compute in bfloat16 or float32"
            )
    sequences = torch.tensor([len(t) for t in blocks.values()], dtype=torch.double)
    tokens = torch.tensor([t.numel() for t in blocks.values()], dtype=torch.double)
    return Statistics(list(blocks), sequences, tokens, loss, sums)


@dataclass
class _Recorder:
    """Hooks that add what they see of the batch under way to the sums of its domain."""

    domains: int
    draws: int
    domain: int = 0
    batch: int = 0  # sequences in it
    embedded: Any = None
    sums: dict[tuple[str, str, int], "torch.Tensor"] = field(default_factory=dict)

    def start_graph(self, _module: Any, _arguments: Any, output: "torch.Tensor") -> None:
        """Weights are frozen, so gradients flow from the embedded tokens."""
        self.embedded = output.requires_grad_(True)

    def add(self, quantity: str, kind: str, layer: int, values: "torch.Tensor") -> None:
        """Add ``[units]`` float64 to the row of the domain; sums stay where the values are."""
        key = quantity, kind, layer
        if key not in self.sums:
            self.sums[key] = values.new_zeros(self.domains, len(values))
        self.sums[key][self.domain] += values

    def watch_consumers(self, layer: "Layer", needs: Collection[str]) -> list[Any]:
        """See the inputs of both consumers and, for masks, the gradients by them."""
        import torch

        def watch(channels: str, split: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> Any:
            def before(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
                x = arguments[0]
                # A hook that held x itself would keep the whole graph alive.
                values = x.detach().reshape(self.batch, -1, x.shape[-1])
                if ACTIVATIONS in needs:
                    norms = torch.linalg.vector_norm(values, dim=(0, 1), dtype=torch.double)
                    self.add("x_squared", channels, layer.index, norms.square())
                    totals = values.sum((0, 1), dtype=torch.double)
                    self.add("x", channels, layer.index, totals)

                def on_gradient(gradient: torch.Tensor) -> None:
                    z = (wide(values) * wide(gradient).reshape(values.shape)).sum(1).double()
                    for kind, units in split(z).items():
                        squares = units.square().sum(0) / self.draws
                        self.add("z_squared", kind, layer.index, squares)
                        self.add("z_absolute", kind, layer.index, units.abs().sum(0) / self.draws)

                if MASKS in needs:
                    x.register_hook(on_gradient)

            return before

        mlp = watch("neurons", lambda z: {"neurons": z})
        attention = watch("columns", lambda z: sum_columns(z, layer))
        return [
            layer.mlp_consumer.register_forward_pre_hook(mlp),
            layer.attention_consumer.register_forward_pre_hook(attention),
        ]

    def watch_linears(self, layer: "Layer") -> list[Any]:
        """See the input of every linear that units own a part of, and the gradient by its output.

        A weight's gradient on one sequence is ``d^T x`` with ``d [T, out]`` the gradient by the
        output and ``x [T, in]`` the input: one matrix at a time, then gone.
        """
        import torch

        owners: dict[Any, list[tuple[str, Member]]] = {}
        for kind in KINDS:
            for member in layer.members(kind):
                owners.setdefault(member.linear, []).append((kind, member))

        def watch(linear: Any, members: "list[tuple[str, Member]]") -> Any:
            def after(_module: Any, arguments: tuple[torch.Tensor, ...], output: Any) -> None:
                x = arguments[0].detach()
                x = x.reshape(self.batch, -1, x.shape[-1])

                def on_gradient(gradient: torch.Tensor) -> None:
                    weight = matrix(linear).detach()
                    d = gradient.reshape(self.batch, -1, gradient.shape[-1])
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
                        by_unit = torch.zeros(getattr(layer, kind), dtype=torch.double)
                        by_channel = sums[member.axis].cpu()[units >= 0]
                        by_unit.index_add_(0, units[units >= 0], by_channel)
                        self.add("weight_gradient", kind, layer.index, by_unit / self.draws)

                output.register_hook(on_gradient)

            return after

        return [
            linear.register_forward_hook(watch(linear, members))
            for linear, members in owners.items()
        ]


def sum_columns(columns: "torch.Tensor", layer: "Layer") -> dict[str, "torch.Tensor"]:
    """Sums over an attention consumer's columns ``[..., m]`` by head and by KV group."""
    heads = columns.unflatten(-1, (layer.heads, -1)).sum(-1)
    return {"heads": heads, "kv_groups": heads.unflatten(-1, (layer.kv_groups, -1)).sum(-1)}


def sequence_losses(model: "PreTrainedModel", tokens: "torch.Tensor") -> "torch.Tensor":
    """Mean negative log-likelihood of each sequence's tokens after its first, ``[n]``.

    Args:
        model: a causal language model.
        tokens: token ids ``[n, tokens]`` on the model's device, without padding.
    """
    return _token_losses(model, tokens)[1].mean(1)


def _token_losses(
    model: "PreTrainedModel", tokens: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Logits ``[n, tokens - 1, V]`` that predict, and the loss of, each token after the first."""
    logits = wide(model(input_ids=tokens, use_cache=False).logits[:, :-1])
    return logits, _cross_entropy(logits, tokens[:, 1:])


def _cross_entropy(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets)


def wide(tensor: "torch.Tensor") -> "torch.Tensor":
    """The same values in float32, or in float64 when they already are."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# Whose gradient a pass takes: a function of the logits [n, T, V], the loss of each true token
# [n, T] and uniform noise [n, T] makes the token losses to differentiate, [n, T].


def _text(
    _logits: "torch.Tensor", losses: "torch.Tensor", _noise: "torch.Tensor"
) -> "torch.Tensor":
    """The loss of the text itself: with it mask-Fisher is the empirical Fisher information."""
    return losses


def _sampled(
    logits: "torch.Tensor", losses: "torch.Tensor", noise: "torch.Tensor"
) -> "torch.Tensor":
    """The loss of labels that the model draws itself: the true Fisher information."""
    import torch

    drawn = []
    for row, uniform in zip(logits.detach(), noise, strict=True):  # [T, V] at a time
        cumulative = row.softmax(-1).cumsum(-1)
        # The last entry is 1 but for rounding: scaled, a draw is always below it.
        drawn.append(torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:]))
    targets = torch.stack(drawn).squeeze(-1).clamp_max(logits.shape[-1] - 1)
    return _cross_entropy(logits, targets)


GRADIENTS = {"text": _text, "sampled": _sampled}


def _noise(shape: "torch.Size", seed: int, first: int, draw: int) -> "torch.Tensor":
    """Uniform numbers of sequences `first` and after: a sequence's own, whatever the batch."""
    import numpy as np
    import torch

    generators = [np.random.default_rng([seed, first + i, draw]) for i in range(shape[0])]
    return torch.from_numpy(np.stack([generator.random(shape[1]) for generator in generators]))
