"""How important each unit is. A new score is one function here, under ``@score("name")``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneflow.models.structure import layers_of
from pruneflow.pruning.statistics import UnitScores, mask_fisher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ScoreInputs:
    """What a score may look at.

    Attributes:
        model: the model of this round, weights frozen.
        blocks: calibration tokens per domain, ``[sequences, tokens]``.
        batch_tokens: tokens in one batch.
        seed: for scores that draw.
        label: names the progress bar.
    """

    model: "PreTrainedModel"
    blocks: dict[str, "torch.Tensor"]
    batch_tokens: int
    seed: int
    label: str


SCORES: dict[str, Callable[[ScoreInputs], UnitScores]] = {}


def score(name: str) -> Callable[[Callable[[ScoreInputs], UnitScores]], Callable]:
    """Register a score under the name that `pruning.score` gives."""

    def register(function: Callable[[ScoreInputs], UnitScores]) -> Callable:
        SCORES[name] = function
        return function

    return register


@score("mask_fisher")
def mask_fisher_score(inputs: ScoreInputs) -> UnitScores:
    """Mean squared derivative of a sequence's loss by a mask on the unit, per domain."""
    return mask_fisher(inputs.model, inputs.blocks, inputs.batch_tokens, inputs.label)


@score("magnitude")
def magnitude_score(inputs: ScoreInputs) -> UnitScores:
    """Sum of squared weights of the unit's consumer columns; looks at no data."""
    neurons, groups = [], []
    for layer in layers_of(inputs.model):
        neurons.append(layer.mlp_consumer.weight.double().square().sum(0, keepdim=True).cpu())
        columns = layer.attention_consumer.weight.double().square().sum(0, keepdim=True).cpu()
        groups.append(columns.unflatten(1, (-1, layer.group_columns)).sum(2))
    return UnitScores(["all"], neurons, groups, {})


@score("random")
def random_score(inputs: ScoreInputs) -> UnitScores:
    """Uniform draws: the floor that every other score must beat."""
    import torch

    generator = torch.Generator().manual_seed(inputs.seed)

    def draw(units: int) -> torch.Tensor:
        return torch.rand(1, units, generator=generator, dtype=torch.double)

    layers = layers_of(inputs.model)
    # A group is worth as much as the neurons that weigh the same, or none would be left.
    return UnitScores(
        ["all"],
        [draw(layer.neurons) for layer in layers],
        [draw(layer.kv_groups) * (layer.group_weights / layer.neuron_weights) for layer in layers],
        {},
    )
