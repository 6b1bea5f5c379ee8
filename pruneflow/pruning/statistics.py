"""One pass over the calibration set: effect of each unit on the loss, and its activations.

With ``z_tj = x_tj * dL/dx_tj`` at a consumer's input, ``z_j = sum_t z_tj`` is the derivative of a
sequence's loss with respect to a mask on channel j; the mask of a head or KV group covers its
columns, so there z is summed over them. The pass keeps sums over sequences, per domain, and
`pruneflow.pruning.scores` makes every score from them. Weights are frozen: no gradient of a
parameter is ever stored.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pruneflow.compute.placement import is_streamed
from pruneflow.compute.ranks import joined
from pruneflow.errors import PruneflowError
from pruneflow.models.structure import layers_of
from pruneflow.pruning.block_passes import Batch, Objective, pass_by_blocks
from pruneflow.pruning.block_stream import split
from pruneflow.pruning.unit_recorder import ACTIVATIONS, KINDS, LOSS, MASKS, Recorder


@dataclass(frozen=True)
class Statistics:
    """Sums over calibration sequences.

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
    sequences: torch.Tensor
    tokens: torch.Tensor
    loss: torch.Tensor
    sums: dict[tuple[str, str, int], torch.Tensor]

    @property
    def losses(self) -> dict[str, float]:
        """Mean loss per token of each domain."""
        return dict(zip(self.domains, (self.loss / self.sequences).tolist(), strict=True))

    def means(self, quantity: str) -> dict[str, list[torch.Tensor]]:
        """Mean over sequences of a quantity by kind, per layer ``[domains, units]``."""
        layers = range(1 + max(index for _, _, index in self.sums))
        per_sequence = 1 / self.sequences[:, None]
        return {
            kind: [self.sums[quantity, kind, index] * per_sequence for index in layers]
            for kind in KINDS
        }


def collect(
    model: PreTrainedModel,
    blocks: dict[str, torch.Tensor],
    batch_tokens: int,
    label: str,
    *,
    needs: Collection[str] = (ACTIVATIONS, MASKS),
    gradient: str = "text",
    draws: int = 1,
    seed: int = 0,
) -> Statistics:
    """Gather statistics in one forward pass, and one backward pass if `needs` asks for gradients.

    Ranks share the batches, and each comes to the same result as one process: batches are added in
    float64, in their one order.

    Args:
        model: the model of this round, in evaluation mode; it is not changed.
        blocks: token ids per domain, ``[sequences, tokens]``, without padding.
        batch_tokens: tokens in one batch. The result does not depend on it but for rounding: a
            sequence's loss is the mean over its own tokens, and sequences do not see each other.
        label: names the progress bar.
        needs: which of `ACTIVATIONS`, `MASKS` and `WEIGHT_GRADIENTS` to gather.
        gradient: loss that is differentiated; a name in `token_losses.GRADIENTS`.
        draws: backward passes of each batch, averaged; more than one only helps with random labels.
        seed: of the random labels.

    Raises:
        PruneflowError: a loss or a sum is NaN or infinite.
    """
    ranks, layers = joined(), layers_of(model)
    batches, rows, first = [], [], 0
    for row, tokens in enumerate(blocks.values()):
        for batch in split(tokens, batch_tokens):
            batches.append(Batch(batch, first))
            rows.append(row)
            first += len(batch)
    recorder = Recorder(layers, needs, draws, "cpu" if is_streamed(model) else model.device)
    objective = Objective(gradient, draws, seed)
    own = pass_by_blocks(model, layers, ranks.own(batches), recorder, objective, label)
    totals = torch.stack([recorder.blank()] * len(blocks))
    for start in range(0, len(batches), ranks.size):
        vector = next(own, None)
        parts = ranks.gather(recorder.blank() if vector is None else vector)
        for row, part in zip(rows[start : start + ranks.size], parts, strict=False):
            totals[row] += part
    assert next(own, None) is None

    sums = {key: totals[:, part].cpu() for key, part in recorder.parts.items()}
    for (quantity, kind, index), values in sums.items():
        if not bool(torch.isfinite(values).all()):
            place = f"layer {index}'s {kind}" if index >= 0 else "the calibration text"
            raise PruneflowError(
                f"{label}: {quantity} of {place} is NaN or infinite: check the model's weights, "
                "and compute in bfloat16 or float32"
            )
    loss = sums.pop(LOSS).flatten()
    sequences = torch.tensor([len(t) for t in blocks.values()], dtype=torch.double)
    tokens = torch.tensor([t.numel() for t in blocks.values()], dtype=torch.double)
    return Statistics(list(blocks), sequences, tokens, loss, sums)
