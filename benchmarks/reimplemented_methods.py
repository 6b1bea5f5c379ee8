"""Published structured pruning methods, reimplemented from their papers for comparison.

Each `prune_X` prunes a model in place, with smaller tensors instead of masks, and returns the share
of block weights removed. Units are those of the engine: MLP neurons, and KV groups with their query
heads. A model with layers of different widths, or with new biases, runs but cannot be saved.

Uniform methods remove the same number of units from every layer. On grouped-query models a KV group
is a coarse unit, so they do not prune attention unless `attention` is set. Global methods keep the
minimum widths of the engine, which are not in the papers and improve their results.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.method_parts import (
    Blocks,
    Choice,
    Kind,
    add_bias,
    best,
    columns_of,
    consumer_moments,
    consumer_of,
    cut_globally,
    cut_layer_by_layer,
    cut_uniformly,
    cut_units,
    unit_sums,
    units_of,
    weight_gradients,
)
from pruneflow.errors import InputError
from pruneflow.models.structure import Layer, layers_of, matrix

RIDGE = 0.01


class PruningMethod(Protocol):
    """The signature of every method in this file."""

    def __call__(
        self, model: PreTrainedModel, blocks: Blocks, ratio: float, *, batch_tokens: int = 2048
    ) -> float:
        """Prune `model` in place to `ratio` and return the actual ratio."""


# ---------------------------------------------------------------------------- without data


def prune_random(
    model: PreTrainedModel,
    blocks: Blocks,
    ratio: float,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
    seed: int = 0,
) -> float:
    """Random units, uniform: the baseline for every method."""
    generator = torch.Generator().manual_seed(seed)

    def score(layer: Layer, kind: Kind) -> Tensor:
        return torch.rand(units_of(layer, kind), generator=generator)

    return cut_uniformly(model, ratio, attention, score)


def prune_magnitude(
    model: PreTrainedModel,
    blocks: Blocks,
    ratio: float,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
) -> float:
    """Sum of squares of all weights of the coupled group, uniform."""

    def score(layer: Layer, kind: Kind) -> Tensor:
        return unit_sums(layer, kind, lambda linear: linear.weight.double().square())

    return cut_uniformly(model, ratio, attention, score)


# ------------------------------------------------------------------- layer by layer, on H


def prune_wanda_sp(
    model: PreTrainedModel,
    blocks: Blocks,
    ratio: float,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
) -> float:
    """Wanda-sp (as in FLAP, 2312.11983): ``S_j = mean_i |W_ij| sqrt(sum_t x_tj^2)``, uniform.

    The score of a KV group is the sum of S^2 over its columns. Activations are those of the
    preceding pruned layers, as in Wanda.
    """

    def choose(weight: Tensor, gram: Tensor, columns: int, keep: int) -> Choice:
        scores = wanda_scores(weight, gram.diagonal()).square().view(-1, columns).sum(1)
        return Choice(best(scores, keep))

    return cut_layer_by_layer(model, blocks, ratio, attention, batch_tokens, choose, "wanda-sp")


def wanda_scores(weight: Tensor, squares: Tensor) -> Tensor:
    """Wanda-sp score of every column of a consumer ``[d_out, m]`` from ``sum_t x_tj^2`` ``[m]``."""
    return weight.double().abs().mean(0) * squares.double().clamp_min(0).sqrt()


def prune_osscar(
    model: PreTrainedModel,
    blocks: Blocks,
    ratio: float,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
    at_once: int = 1,
) -> float:
    """OBS with least squares, one shot, uniform: OSSCAR (2403.12983) without its local search.

    `at_once` units are removed per update: 1 is the published method, more is an approximation.
    """

    def choose(weight: Tensor, gram: Tensor, columns: int, keep: int) -> Choice:
        kept, solution, _ = obs_greedy(weight, gram, columns, keep, at_once=at_once)
        return Choice(kept, solution)

    return cut_layer_by_layer(model, blocks, ratio, attention, batch_tokens, choose, "osscar")


def obs_greedy(
    weight: Tensor, gram: Tensor, columns: int, keep: int, *, ridge: float = RIDGE, at_once: int = 1
) -> tuple[Tensor, Tensor, float]:
    """Repeatedly remove the unit with the lowest cost and refit all others (OSSCAR, 2403.12983).

    With ``B = W^T`` and ``P = (H + lambda I)^-1``, unit g costs ``tr(B_g^T P_gg^-1 B_g)``, and
    its removal updates ``B <- B - P_:g P_gg^-1 B_g`` and ``P <- P - P_:g P_gg^-1 P_g:``.

    Args:
        weight: ``[d_out, m]``.
        gram: ``H = X^T X``, ``[m, m]``.
        columns: columns of one unit; units are consecutive.
        keep: number of units to keep.
        ridge: lambda as a share of the mean diagonal of H.
        at_once: units removed per update.

    Returns:
        Units kept, ascending; the consumer's new columns ``[d_out, keep * columns]`` float64, which
        minimise ``|X dW^T|^2 + lambda |dW|^2`` over weights on the kept columns; and that minimum.

    Raises:
        InputError: H is not finite.
    """
    h = gram.double()
    if not bool(torch.isfinite(h).all()):
        raise InputError("the activations contain NaN or infinity: use --dtype float32")
    b = weight.double().T.clone()
    # H = 0 if the consumer has no input: any ridge works.
    damping = ridge * float(h.diagonal().mean()) or 1.0
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h + damping * identity))
    total = torch.zeros((), dtype=h.dtype, device=h.device)
    present = torch.arange(len(h) // columns, device=h.device)
    while len(present) > keep:
        costs = _obs_costs(b, inverse, present, columns)
        order = costs.argsort(stable=True)
        count = min(at_once, len(present) - keep)
        removed = columns_of(present[order[:count]], columns)
        present = present[order[count:].sort().values]
        across, block = inverse[:, removed], inverse[removed][:, removed]
        factor = torch.linalg.cholesky(block)
        correction = torch.cholesky_solve(b[removed], factor)
        total += (b[removed] * correction).sum()
        b.addmm_(across, correction, alpha=-1)
        inverse.addmm_(across, torch.cholesky_solve(across.T.contiguous(), factor), alpha=-1)
    return present, b[columns_of(present, columns)].T.contiguous(), float(total)


def _obs_costs(b: Tensor, inverse: Tensor, present: Tensor, columns: int) -> Tensor:
    if columns == 1:
        return b[present].square().sum(1) / inverse.diagonal()[present]
    rows = columns_of(present, columns).view(-1, columns)
    blocks = inverse[rows[:, :, None], rows[:, None, :]]  # [units, columns, columns]
    own = b[rows]
    return (own * torch.cholesky_solve(own, torch.linalg.cholesky(blocks))).sum((1, 2))


# ------------------------------------------------------------------ global, over all layers


def prune_flap(
    model: PreTrainedModel, blocks: Blocks, ratio: float, *, batch_tokens: int = 2048
) -> float:
    """FLAP (2312.11983): WIFV scores, AL-AM allocation, and a bias that compensates removed units.

    ``S_j = var(x_j) |W_:j|^2``, squared again for attention and standardised per layer and kind;
    the score of a KV group is the mean over its columns. One threshold for the complete model, with
    units counted by weights. Consumers get ``b += W mean(x)`` over the removed columns.
    """
    moments = consumer_moments(model, layers_of(model), blocks, batch_tokens)

    def score(layer: Layer, kind: Kind) -> Tensor:
        weight = matrix(consumer_of(layer, kind)).double()
        columns = moments[kind, layer.index].variance * weight.square().sum(0)
        columns = columns.square() if kind == "kv_groups" else columns
        standard = (columns - columns.mean()) / columns.std().clamp_min(1e-300)
        return standard.view(units_of(layer, kind), -1).mean(1)

    def cut(layer: Layer, kind: Kind, keep: Tensor) -> None:
        consumer, mean = consumer_of(layer, kind), moments[kind, layer.index].mean
        mean[columns_of(keep, len(mean) // units_of(layer, kind))] = 0
        bias = matrix(consumer).double() @ mean
        cut_units(layer, kind, keep)
        add_bias(consumer, bias)

    return cut_globally(model, ratio, score, cut)


def prune_llm_pruner(
    model: PreTrainedModel,
    blocks: Blocks,
    ratio: float,
    *,
    batch_tokens: int = 2048,
    per_weight: bool = False,
) -> float:
    """LLM-Pruner (2305.11627), param-first Taylor, global.

    The score of a unit is ``sum |w dL/dw|`` over all weights of its coupled group, with L the mean
    loss on the calibration set. Units are ranked by these sums, as in the paper's code, which
    removes hardly any KV group; `per_weight` divides them by the number of weights.
    """
    gradients = weight_gradients(model, layers_of(model), blocks, batch_tokens)

    def taylor(linear: Any) -> Tensor:
        return (linear.weight.double() * gradients[linear]).abs()

    def score(layer: Layer, kind: Kind) -> Tensor:
        sums = unit_sums(layer, kind, taylor)
        return sums / layer.unit_weights(kind) if per_weight else sums

    return cut_globally(model, ratio, score)


REIMPLEMENTED: dict[str, PruningMethod] = {
    "random": prune_random,
    "magnitude": prune_magnitude,
    "wanda_sp": prune_wanda_sp,
    "flap": prune_flap,
    "llm_pruner": prune_llm_pruner,
    "osscar": prune_osscar,
}
