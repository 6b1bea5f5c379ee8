"""Importance scores of units. A new score is one function here, under ``@score("name")``.

Scores are not negative and higher means more important. The allocation removes by score per weight,
so a score is that of the complete unit. Every score compares the units of one layer well. Across
layers, `mask_fisher`, `first_order` and `weight_gradient` are comparable because each is a change
of the same loss, `flap` because of its z-scores, and `random` trivially. `wanda_sp`, `obs` and
`magnitude` are layer-local: they measure a consumer's own output or weights, whose scale grows with
depth and differs between MLP and attention. In layout `uniform` only their order within a layer,
and the balance of neurons and attention, has an effect; `per_layer` compares them as they are, and
so prunes layers with small activations first. Their papers use uniform widths.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pruneflow.compute.placement import resident
from pruneflow.compute.ranks import joined
from pruneflow.errors import InputError
from pruneflow.models.structure import Layer, layers_of, matrix
from pruneflow.progress import track
from pruneflow.pruning.block_stream import BlockStream, split
from pruneflow.pruning.obs import removal_errors
from pruneflow.pruning.statistics import Statistics, collect
from pruneflow.pruning.unit_recorder import ACTIVATIONS, KINDS, MASKS, WEIGHT_GRADIENTS, sum_columns
from pruneflow.settings.pruning import ScoreName

OBS_RIDGE = 0.01  # of OSSCAR's and SparseGPT's inverse, as a share of H's mean diagonal


@dataclass(frozen=True)
class ScoreInputs:
    """Inputs of a score.

    Attributes:
        model: the model of this round, in evaluation mode.
        blocks: calibration tokens per domain, ``[sequences, tokens]``, without padding.
        batch_tokens: tokens in one batch.
        seed: of scores that draw random numbers.
        label: names the progress bar.
        gradient: loss that is differentiated, for all gradient scores; a name in
            `token_losses.GRADIENTS`. LLM-Pruner's `weight_gradient` uses ``text``.
        draws: backward passes per batch; their results are averaged.
    """

    model: PreTrainedModel
    blocks: dict[str, torch.Tensor]
    batch_tokens: int
    seed: int
    label: str
    gradient: str = "text"
    draws: int = 1


@dataclass(frozen=True)
class Scores:
    """A score for every unit that can be removed; higher means more important.

    Attributes:
        domains: names of the rows; ``["all"]`` for a score that uses no data.
        units: by kind (`KINDS`), per layer ``[domains, units]`` float64 on the CPU.
        losses: mean loss per token of each domain, empty when the score needed none.
    """

    domains: list[str]
    units: dict[str, list[torch.Tensor]]
    losses: dict[str, float]

    def combined(self, weights: dict[str, float]) -> dict[str, list[torch.Tensor]]:
        """Average over domains after scaling each to a total of 1, so that no domain dominates.

        The total is over neurons and KV groups; heads, which would count their groups twice, are
        scaled by the same factor.

        Args:
            weights: relative weight of a domain; 1 when absent.

        Returns:
            By kind, per layer ``[units]``.
        """
        totals = torch.zeros(len(self.domains), dtype=torch.double)
        for values in self.units["neurons"] + self.units["kv_groups"]:
            totals += values.sum(1)
        shares = torch.tensor([weights.get(name, 1.0) for name in self.domains], dtype=torch.double)
        factors = (shares / shares.sum()) / totals.clamp_min(1e-300)
        return {kind: [factors @ values for values in self.units[kind]] for kind in KINDS}


Formula = Callable[[ScoreInputs, Statistics], Scores]


@dataclass(frozen=True)
class Score:
    """A registered score: the statistics it needs, and its formula."""

    needs: frozenset[str]
    formula: Formula


SCORES: dict[str, Score] = {}


def score(name: ScoreName, *needs: str) -> Callable[[Formula], Formula]:
    """Register a score under the name that `pruning.score` gives.

    Args:
        name: of the score, as `ScoreName` in pruneflow/settings/pruning.py lists it.
        needs: `ACTIVATIONS`, `MASKS`, `WEIGHT_GRADIENTS`, as needed; none for a score that uses no
            data or makes its own pass.
    """

    def register(formula: Formula) -> Formula:
        SCORES[name] = Score(frozenset(needs), formula)
        return formula

    return register


def compute_scores(names: Sequence[str], inputs: ScoreInputs) -> dict[str, Scores]:
    """Compute scores by name; all that need statistics share one pass.

    There is no backward pass when no score needs a gradient, and no pass when no score uses data.
    Only `obs` makes a pass of its own, block by block.

    Raises:
        InputError: there is no score of that name.
        PruneflowError: a statistic is NaN or infinite.
    """
    for name in names:
        if name not in SCORES:
            raise InputError(f"there is no score {name}: use {', '.join(sorted(SCORES))}")
    needs = frozenset[str]().union(*(SCORES[name].needs for name in names))
    none = torch.zeros(0, dtype=torch.double)
    statistics = Statistics([], none, none, none, {})
    if needs:
        statistics = collect(
            inputs.model,
            inputs.blocks,
            inputs.batch_tokens,
            inputs.label,
            needs=needs,
            gradient=inputs.gradient,
            draws=inputs.draws,
            seed=inputs.seed,
        )
    return {name: SCORES[name].formula(inputs, statistics) for name in names}


@score("mask_fisher", MASKS)
def mask_fisher(_inputs: ScoreInputs, statistics: Statistics) -> Scores:
    """``mean over sequences of (sum_t z_t)^2``: the squared derivative of the loss by a mask."""
    return Scores(statistics.domains, statistics.means("z_squared"), statistics.losses)


@score("first_order", MASKS)
def first_order(_inputs: ScoreInputs, statistics: Statistics) -> Scores:
    """``mean over sequences of |sum_t z_t|``: the first-order change of the loss by a mask."""
    return Scores(statistics.domains, statistics.means("z_absolute"), statistics.losses)


@score("weight_gradient", WEIGHT_GRADIENTS)
def weight_gradient(_inputs: ScoreInputs, statistics: Statistics) -> Scores:
    """``sum |w dL/dw|`` over all weights of the coupled group (LLM-Pruner, arXiv 2305.11627).

    Departure: the paper takes the gradient of the mean loss over its sample; here ``|w dL/dw|`` is
    taken per sequence and averaged, so that no gradient is stored and batches do not matter.
    Biases do not count.
    """
    return Scores(statistics.domains, statistics.means("weight_gradient"), statistics.losses)


@score("wanda_sp", ACTIVATIONS)
def wanda_sp(inputs: ScoreInputs, statistics: Statistics) -> Scores:
    """``S_j^2`` with ``S_j = mean_i |W_ij| sqrt(sum_t x_tj^2)``; a head sums it over its columns.

    Wanda-sp (arXiv 2306.11695, 2312.11983). For neurons the square keeps the paper's order, and
    makes neurons and heads sums of one quantity, whatever the number of tokens.
    """

    def channels(layer: Layer, kind: str) -> torch.Tensor:
        means = matrix(_consumer(layer, kind)).detach().abs().mean(0, dtype=torch.double).cpu()
        return means.square() * statistics.sums["x_squared", kind, layer.index]

    return Scores(statistics.domains, _by_channel(inputs.model, channels), statistics.losses)


@score("flap", ACTIVATIONS)
def flap(inputs: ScoreInputs, statistics: Statistics) -> Scores:
    """``var(x_j) |W_:j|^2``, in attention squared once more, z-scored per layer and kind.

    FLAP (arXiv 2312.11983, WIFV with AL-AM); a head has the mean z-score of its columns. The paper
    removes what is below one global threshold on z. So that removing by score per weight does
    the same, and scores are not negative, a unit's score is ``(z - the domain's lowest z)`` times
    the unit's weights, counted in neurons.
    """

    def channels(layer: Layer, kind: str) -> torch.Tensor:
        tokens = statistics.tokens[:, None]
        mean = statistics.sums["x", kind, layer.index] / tokens
        square = statistics.sums["x_squared", kind, layer.index] / tokens
        norms = _column_norms(_consumer(layer, kind))
        values = (square - mean.square()).clamp_min(0) * norms
        if kind == "columns":
            values = values.square()
        centred = values - values.mean(1, keepdim=True)
        return centred / values.std(1, keepdim=True).nan_to_num().clamp_min(1e-300)

    units = _by_channel(inputs.model, channels)
    layers = layers_of(inputs.model)
    for layer in layers:
        units["heads"][layer.index] /= layer.head_dim
        units["kv_groups"][layer.index] /= layer.heads_per_group * layer.head_dim
    lowest = torch.cat([z for kind in KINDS for z in units[kind]], 1).amin(1, keepdim=True)
    for layer in layers:
        for kind, share in _sizes(layer).items():
            units[kind][layer.index] = (units[kind][layer.index] - lowest) * share
    return Scores(statistics.domains, units, statistics.losses)


@score("obs")
def obs(inputs: ScoreInputs, statistics: Statistics) -> Scores:
    """Rise of the consumer's squared output error when the unit is removed and the rest refitted.

    Per domain and consumer ``H = X^T X``, see `removal_errors`. One layer's H is in memory at a
    time.
    """
    layers = layers_of(inputs.model)
    rows: dict[str, list[list[torch.Tensor]]] = {kind: [[] for _ in layers] for kind in KINDS}
    for domain, tokens in inputs.blocks.items():
        batches = joined().own(split(tokens, inputs.batch_tokens))
        stream = BlockStream(inputs.model, layers, batches)
        for layer in track(layers, f"{inputs.label} {domain}"):
            widths = {"heads": layer.head_dim, "kv_groups": layer.heads_per_group * layer.head_dim}
            with resident(layer.module):
                for consumer, kinds in (
                    (layer.attention_consumer, widths),
                    (layer.mlp_consumer, {"neurons": 1}),
                ):
                    gram = stream.gram(layer, consumer)
                    errors = removal_errors(matrix(consumer), gram, kinds.values(), OBS_RIDGE)
                    for kind, values in zip(kinds, errors, strict=True):
                        rows[kind][layer.index].append(values)
                stream.advance(layer)
    units = {kind: [torch.stack(by_domain) for by_domain in rows[kind]] for kind in KINDS}
    return Scores(list(inputs.blocks), units, statistics.losses)


@score("magnitude")
def magnitude(inputs: ScoreInputs, _statistics: Statistics) -> Scores:
    """Sum of squared weights of the unit's consumer columns; uses no data."""

    def channels(layer: Layer, kind: str) -> torch.Tensor:
        return _column_norms(_consumer(layer, kind))[None]

    return Scores(["all"], _by_channel(inputs.model, channels), {})


@score("random")
def random(inputs: ScoreInputs, _statistics: Statistics) -> Scores:
    """Uniform random numbers: the baseline that every other score must beat."""
    generator = torch.Generator().manual_seed(inputs.seed)
    units: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for layer in layers_of(inputs.model):
        # Scaled by size: otherwise no KV group would survive next to single neurons.
        for kind, share in _sizes(layer).items():
            draws = torch.rand(1, getattr(layer, kind), generator=generator, dtype=torch.double)
            units[kind].append(draws * share)
    return Scores(["all"], units, {})


def _consumer(layer: Layer, channels: str) -> torch.nn.Module:
    return layer.mlp_consumer if channels == "neurons" else layer.attention_consumer


def _column_norms(consumer: torch.nn.Module) -> torch.Tensor:
    """``|W_:j|^2`` of every input channel, ``[m]`` float64 on the CPU."""
    weight = matrix(consumer).detach()
    return torch.linalg.vector_norm(weight, dim=0, dtype=torch.double).square().cpu()


def _sizes(layer: Layer) -> dict[str, float]:
    """Weights of one unit of each kind, counted in neurons."""
    neuron = layer.unit_weights("neurons")
    return {kind: layer.unit_weights(kind) / neuron for kind in KINDS}


def _by_channel(
    model: PreTrainedModel, channels: Callable[[Layer, str], torch.Tensor]
) -> dict[str, list[torch.Tensor]]:
    """Unit scores from consumer channels' (``neurons``, ``columns``): heads sum over theirs."""
    units: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    for layer in layers_of(model):
        units["neurons"].append(channels(layer, "neurons"))
        for kind, values in sum_columns(channels(layer, "columns"), layer).items():
            units[kind].append(values)
    return units
