"""Published structured pruning methods, from their papers' maths, to measure beside the engine.

Each `prune_X` cuts a model in place, with smaller tensors and nothing masked, and returns the
share of its block weights that is gone. Units are those of the engine: MLP neurons, and KV groups
with their query heads. A model whose layers differ in width afterwards, or whose consumers got a
bias, runs but has no configuration to be saved under.

Uniform methods take the same number from every layer. On grouped-query models a whole KV group
is a coarse unit, so they leave attention alone unless `attention` says otherwise. Global methods
keep the same floors as the engine does, which the papers do not: it helps them.
"""

from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.method_parts import (
    KINDS,
    Choice,
    Kind,
    add_bias,
    best,
    columns_of,
    consumer_moments,
    consumer_of,
    cut_layer_by_layer,
    cut_uniformly,
    cut_units,
    lowest_go,
    unit_sums,
    units_of,
    weight_gradients,
)
from pruneflow.errors import InputError
from pruneflow.models.structure import Layer, block_weights, layers_of, matrix

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

RIDGE = 0.01


class Peer(Protocol):
    """What every method of this file looks like."""

    def __call__(
        self,
        model: "PreTrainedModel",
        blocks: dict[str, "Tensor"],
        ratio: float,
        *,
        batch_tokens: int = 2048,
    ) -> float:
        """Cut `model` in place to `ratio` and return the ratio achieved."""


# ---------------------------------------------------------------------------- without data


def prune_random(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
    seed: int = 0,
) -> float:
    """Random units, uniform: the floor for every method."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def score(layer: Layer, kind: Kind) -> "Tensor":
        return torch.rand(units_of(layer, kind), generator=generator)

    return cut_uniformly(model, ratio, attention, score)


def prune_magnitude(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
) -> float:
    """Sum of squares of all weights of the coupled group, uniform."""

    def score(layer: Layer, kind: Kind) -> "Tensor":
        return unit_sums(layer, kind, lambda linear: linear.weight.double().square())

    return cut_uniformly(model, ratio, attention, score)


# ------------------------------------------------------------------- layer by layer, on H


def prune_wanda_sp(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
) -> float:
    """Wanda-sp (as in FLAP, 2312.11983): ``S_j = mean_i |W_ij| sqrt(sum_t x_tj^2)``, uniform.

    A KV group is worth the sum of S^2 over its columns. Activations are those of the layers
    already pruned, as in Wanda.
    """

    def choose(weight: "Tensor", gram: "Tensor", columns: int, keep: int) -> "Choice":
        scores = wanda_scores(weight, gram.diagonal()).square().view(-1, columns).sum(1)
        return Choice(best(scores, keep))

    return cut_layer_by_layer(model, blocks, ratio, attention, batch_tokens, choose, "wanda-sp")


def wanda_scores(weight: "Tensor", squares: "Tensor") -> "Tensor":
    """Wanda-sp of every column of a consumer ``[d_out, m]`` from ``sum_t x_tj^2`` ``[m]``."""
    return weight.double().abs().mean(0) * squares.double().clamp_min(0).sqrt()


def prune_osscar(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
    attention: bool = False,
    at_once: int = 1,
) -> float:
    """OBS with least squares, one shot, uniform, as OSSCAR (2403.12983) without its local search.

    `at_once` units go between two updates: 1 is the method, more is faster and greedier.
    """

    def choose(weight: "Tensor", gram: "Tensor", columns: int, keep: int) -> "Choice":
        kept, solution, _ = obs_greedy(weight, gram, columns, keep, at_once=at_once)
        return Choice(kept, solution)

    return cut_layer_by_layer(model, blocks, ratio, attention, batch_tokens, choose, "osscar")


def obs_greedy(
    weight: "Tensor",
    gram: "Tensor",
    columns: int,
    keep: int,
    *,
    ridge: float = RIDGE,
    at_once: int = 1,
) -> tuple["Tensor", "Tensor", float]:
    """Remove the unit that costs least, refit all others, and repeat (OSSCAR, 2403.12983).

    With ``B = W^T`` and ``P = (H + lambda I)^-1``, unit g costs ``tr(B_g^T P_gg^-1 B_g)``; after
    it ``B <- B - P_:g P_gg^-1 B_g`` and ``P <- P - P_:g P_gg^-1 P_g:``.

    Args:
        weight: ``[d_out, m]``.
        gram: ``H = X^T X``, ``[m, m]``.
        columns: columns of one unit; units are consecutive.
        keep: units that stay.
        ridge: lambda as a share of the mean diagonal of H.
        at_once: units that go between two updates.

    Returns:
        Units kept, rising; the consumer's new columns ``[d_out, keep * columns]`` float64, which
        minimise ``|X dW^T|^2 + lambda |dW|^2`` over weights on the kept columns; and that minimum.

    Raises:
        InputError: H is not finite.
    """
    import torch

    h = gram.double()
    if not bool(torch.isfinite(h).all()):
        raise InputError("the activations hold NaN or infinity: use --dtype float32")
    b = weight.double().T.clone()
    # A consumer that never sees a token has H = 0: any ridge will do.
    damping = ridge * float(h.diagonal().mean()) or 1.0
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h + damping * identity))
    total = torch.zeros((), dtype=h.dtype, device=h.device)
    present = torch.arange(len(h) // columns, device=h.device)
    while len(present) > keep:
        costs = _obs_costs(b, inverse, present, columns)
        order = costs.argsort(stable=True)
        count = min(at_once, len(present) - keep)
        gone = columns_of(present[order[:count]], columns)
        present = present[order[count:].sort().values]
        across, block = inverse[:, gone], inverse[gone][:, gone]
        factor = torch.linalg.cholesky(block)
        correction = torch.cholesky_solve(b[gone], factor)
        total += (b[gone] * correction).sum()
        b.addmm_(across, correction, alpha=-1)
        inverse.addmm_(across, torch.cholesky_solve(across.T.contiguous(), factor), alpha=-1)
    return present, b[columns_of(present, columns)].T.contiguous(), float(total)


def _obs_costs(b: "Tensor", inverse: "Tensor", present: "Tensor", columns: int) -> "Tensor":
    import torch

    if columns == 1:
        return b[present].square().sum(1) / inverse.diagonal()[present]
    rows = columns_of(present, columns).view(-1, columns)
    blocks = inverse[rows[:, :, None], rows[:, None, :]]  # [units, columns, columns]
    own = b[rows]
    return (own * torch.cholesky_solve(own, torch.linalg.cholesky(blocks))).sum((1, 2))


# ------------------------------------------------------------------ global, over all layers


def prune_flap(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
) -> float:
    """FLAP (2312.11983): WIFV scores, AL-AM allocation, and a bias in place of what is removed.

    ``S_j = var(x_j) |W_:j|^2``, for attention squared once more; z-scored per layer and kind; a
    KV group is the mean over its columns. One threshold over the whole model, a unit counting by
    its weights. The consumers get ``b += W mean(x)`` over the columns removed.
    """
    layers = layers_of(model)
    before = block_weights(model)
    moments = consumer_moments(model, layers, blocks, batch_tokens)
    scores: dict[Kind, list[Tensor]] = {kind: [] for kind in KINDS}
    for layer in layers:
        for kind in KINDS:
            weight = matrix(consumer_of(layer, kind)).double()
            columns = moments[kind, layer.index].variance * weight.square().sum(0)
            columns = columns.square() if kind == "kv_groups" else columns
            standard = (columns - columns.mean()) / columns.std().clamp_min(1e-300)
            scores[kind].append(standard.view(units_of(layer, kind), -1).mean(1).cpu())
    kept = lowest_go(layers, scores, round(ratio * before))
    for layer in layers:
        for kind in KINDS:
            keep, consumer = kept[kind][layer.index], consumer_of(layer, kind)
            mean = moments[kind, layer.index].mean
            stays = columns_of(keep, len(mean) // units_of(layer, kind))
            if len(stays) == len(mean):
                continue
            mean[stays] = 0
            bias = matrix(consumer).double() @ mean
            cut_units(layer, kind, keep)
            add_bias(consumer, bias)
    return 1 - block_weights(model) / before


def prune_llm_pruner(
    model: "PreTrainedModel",
    blocks: dict[str, "Tensor"],
    ratio: float,
    *,
    batch_tokens: int = 2048,
    per_weight: bool = False,
) -> float:
    """LLM-Pruner (2305.11627), param-first Taylor, global.

    A unit is worth ``sum |w dL/dw|`` over all weights of its coupled group, L the mean loss over
    the calibration set. Units are ranked by these bare sums, as in the paper's code, so that
    hardly any KV group can go; `per_weight` ranks them by worth per weight.
    """
    layers = layers_of(model)
    before = block_weights(model)
    gradients = weight_gradients(model, layers, blocks, batch_tokens)

    def taylor(linear: Any) -> "Tensor":
        return (linear.weight.double() * gradients[linear]).abs()

    scores: dict[Kind, list[Tensor]] = {
        kind: [unit_sums(layer, kind, taylor) for layer in layers] for kind in KINDS
    }
    if per_weight:
        for layer in layers:
            scores["neurons"][layer.index] /= layer.neuron_weights
            scores["kv_groups"][layer.index] /= layer.group_weights
    kept = lowest_go(layers, scores, round(ratio * before))
    for layer in layers:
        for kind in kept:
            cut_units(layer, kind, kept[kind][layer.index])
    return 1 - block_weights(model) / before


PEERS: dict[str, Peer] = {
    "random": prune_random,
    "magnitude": prune_magnitude,
    "wanda_sp": prune_wanda_sp,
    "flap": prune_flap,
    "llm_pruner": prune_llm_pruner,
    "osscar": prune_osscar,
}
