"""One round: score, allocate, cut, refit. The model comes out smaller and still dense.

Rounds repeat this on their parent's result, so that scores and Gram matrices come from the
pruned model (iterative calibration, arXiv 2601.02674); see docs/method.md.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneflow.config import PruningSettings
from pruneflow.errors import InputError
from pruneflow.models.export import rebuild
from pruneflow.models.structure import (
    Layer,
    allowed_kv_groups,
    block_weights,
    layers_of,
)
from pruneflow.progress import track
from pruneflow.pruning.allocation import Costs, Kept, allocate_uniform
from pruneflow.pruning.refit import refit_columns
from pruneflow.pruning.scores import SCORES, ScoreInputs
from pruneflow.pruning.statistics import UnitScores
from pruneflow.pruning.stream import BlockStream
from pruneflow.pruning.surgery import cut_kv_groups, cut_neurons, group_columns

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DenseShape:
    """What ratios and floors refer to: the unpruned model, in every round.

    Attributes:
        block_weights: weights in its transformer blocks' matrices.
        neurons: MLP neurons of one of its layers.
    """

    block_weights: int
    neurons: int


@dataclass(frozen=True)
class RoundResult:
    """What a round made.

    Attributes:
        model: the smaller model, rebuilt from a configuration with its new widths.
        scores: what each unit of the parent was worth, per domain.
        kept: which of the parent's units stayed.
        achieved_ratio: share of the dense model's block weights that are gone.
    """

    model: "PreTrainedModel"
    scores: UnitScores
    kept: Kept
    achieved_ratio: float


def prune_round(
    model: "PreTrainedModel",
    blocks: dict[str, "torch.Tensor"],
    ratio: float,
    dense: DenseShape,
    settings: PruningSettings,
    *,
    weights: dict[str, float] | None = None,
    batch_tokens: int = 2048,
    backward_batch_tokens: int = 1024,
    label: str = "round",
) -> RoundResult:
    """Prune a model, in place, until `ratio` of the dense model's block weights are gone.

    Args:
        model: the parent, weights frozen; its layers are cut in place.
        blocks: calibration tokens per domain, ``[sequences, tokens]``.
        ratio: target share of the dense block weights, 0 to 1; met from above within one step.
        dense: sizes of the unpruned model.
        settings: score, widths, refit.
        weights: relative weight of domains in the score; 1 when absent.
        batch_tokens: tokens in one forward pass.
        backward_batch_tokens: tokens in one forward and backward pass.
        label: names the progress bars.

    Raises:
        InputError: the target is below what the floors leave, or already passed.
    """
    import torch

    layers = layers_of(model)
    inputs = ScoreInputs(model, blocks, backward_batch_tokens, settings.seed, f"{label} score")
    scores = SCORES[settings.score](inputs)
    neurons, groups = scores.combined(weights or {})
    to_remove = block_weights(model) - round((1 - ratio) * dense.block_weights)
    if to_remove <= 0:
        raise InputError(
            f"{label}: its ratio {ratio:g} is already reached by its parent, which overshot by up "
            "to one step: raise it, or lower pruning.neuron_multiple"
        )
    kept = allocate_uniform(neurons, groups, _costs(model, layers, dense, settings), to_remove)
    tokens = torch.cat(list(blocks.values()))
    if settings.refit == "none":
        for layer in layers:
            cut_kv_groups(layer, kept.kv_groups[layer.index])
            cut_neurons(layer, kept.neurons[layer.index])
    else:
        _cut_and_refit(model, layers, kept, tokens, settings.ridge, batch_tokens, label)
    pruned = rebuild(model)
    return RoundResult(pruned, scores, kept, 1 - block_weights(pruned) / dense.block_weights)


def _costs(
    model: "PreTrainedModel", layers: list[Layer], dense: DenseShape, settings: PruningSettings
) -> Costs:
    first = layers[0]
    return Costs(
        neuron_weights=first.neuron_weights,
        group_weights=first.group_weights,
        neuron_multiple=settings.neuron_multiple,
        neuron_floor=max(1, round(settings.min_neuron_share * dense.neurons)),
        allowed_groups=(
            allowed_kv_groups(model.config) if settings.prune_attention else [first.kv_groups]
        ),
    )


def _cut_and_refit(
    model: "PreTrainedModel",
    layers: list[Layer],
    kept: Kept,
    tokens: "torch.Tensor",
    ridge: float,
    batch_tokens: int,
    label: str,
) -> None:
    """Cut layer by layer, each refitted on the activations of the pruned layers before it."""
    stream = BlockStream(model, layers, tokens, batch_tokens)
    for layer in track(layers, f"{label} refit"):
        groups, neurons = kept.kv_groups[layer.index], kept.neurons[layer.index]
        if len(groups) < layer.kv_groups:
            consumer = layer.attention_consumer
            columns = group_columns(groups, layer.group_columns)
            refitted = refit_columns(consumer.weight, stream.gram(layer, consumer), columns, ridge)
            cut_kv_groups(layer, groups)
            consumer.weight.data.copy_(refitted)
        if len(neurons) < layer.neurons:
            consumer = layer.mlp_consumer
            refitted = refit_columns(consumer.weight, stream.gram(layer, consumer), neurons, ridge)
            cut_neurons(layer, neurons)
            consumer.weight.data.copy_(refitted)
        stream.advance(layer)
