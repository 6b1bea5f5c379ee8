"""One round: score, allocate, cut, refit. The model comes out smaller and still dense.

Rounds repeat this on their parent's result, so that scores and Gram matrices come from the
pruned model (iterative calibration, arXiv 2601.02674); see docs/method.md.
"""

import copy
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PreTrainedModel

from pruneflow.compute.placement import placement_of, resident
from pruneflow.compute.ranks import joined
from pruneflow.errors import InputError
from pruneflow.models.export import rebuild
from pruneflow.models.families import allowed_attention
from pruneflow.models.round_record import DenseReference
from pruneflow.models.structure import Layer, block_weights, layers_of, matrix, parameters
from pruneflow.models.surgery import cut_heads, cut_neurons, head_columns, set_columns
from pruneflow.progress import track
from pruneflow.pruning.allocation import Kept, LayerUnits, Limits, allocate
from pruneflow.pruning.block_stream import BlockStream, fits_on_device, split
from pruneflow.pruning.refit import normal_equations, solve, system_of
from pruneflow.pruning.scores import ScoreInputs, Scores, compute_scores
from pruneflow.pruning.unit_recorder import KINDS
from pruneflow.settings.pruning import PruningSettings, Target


@dataclass(frozen=True)
class RoundResult:
    """Result of a round.

    Attributes:
        model: the smaller model; with layout ``uniform`` rebuilt from a configuration that has
            its new widths.
        scores: by name, the scores of the parent's units, per domain.
        kept: which of the parent's units stayed.
        achieved_ratio: share of the dense model's block weights that is removed.
        notes: remarks for the reader of the result, one sentence each.
    """

    model: PreTrainedModel
    scores: dict[str, Scores]
    kept: Kept
    achieved_ratio: float
    notes: list[str]


def prune_round(
    model: PreTrainedModel,
    blocks: dict[str, torch.Tensor],
    target: Target,
    dense: DenseReference,
    settings: PruningSettings,
    *,
    weights: dict[str, float] | None = None,
    stored_bytes: int = 2,
    batch_tokens: int = 2048,
    backward_batch_tokens: int = 1024,
    label: str = "round",
) -> RoundResult:
    """Prune a model, in place, until its target is reached.

    Args:
        model: the parent, weights frozen; its layers are cut in place.
        blocks: calibration tokens per domain, ``[sequences, tokens]``.
        target: size to reach; met within one step.
        dense: sizes of the unpruned model.
        settings: score, layout, units, widths, refit.
        weights: relative weight of domains in the score; 1 when absent.
        stored_bytes: bytes of one parameter on disk, for a target in bytes.
        batch_tokens: tokens in one forward pass.
        backward_batch_tokens: tokens in one forward and backward pass.
        label: names the progress bars.

    Raises:
        InputError: the target is below what floors and protected layers leave, or already passed,
            or ranks placed their models differently.
    """
    layers = layers_of(model)
    _agree_on_placement(model, layers)
    to_remove = _to_remove(model, target, dense, stored_bytes, label)
    limits, notes = _limits(model, layers, dense, settings)
    names = list(dict.fromkeys([settings.score, *settings.also_score]))
    scores = compute_scores(
        names,
        ScoreInputs(
            model=model,
            blocks=blocks,
            batch_tokens=backward_batch_tokens,
            seed=settings.seed,
            label=f"{label} score",
            gradient=settings.fisher_labels,
            draws=settings.fisher_draws,
        ),
    )
    units = _units(layers, scores[settings.score].combined(weights or {}), target)
    kept = allocate(units, _pools(len(layers), settings), limits, to_remove)
    _cut(model, layers, kept, torch.cat(list(blocks.values())), settings, batch_tokens, label)
    pruned = rebuild(model, settings.layout)
    achieved = 1 - block_weights(pruned) / dense.block_weights
    return RoundResult(pruned, scores, kept, achieved, notes)


def _agree_on_placement(model: PreTrainedModel, layers: list[Layer]) -> None:
    """Refuse ranks with different placements: their exchange of tensors would deadlock."""
    devices = list(dict.fromkeys(layer.device for layer in layers))
    joined().agree(
        f"{placement_of(model)} {[devices.index(layer.device) for layer in layers]}",
        "ranks placed the model differently because their GPUs have different free memory: set "
        "compute.placement",
    )


def _to_remove(
    model: PreTrainedModel, target: Target, dense: DenseReference, stored_bytes: int, label: str
) -> int:
    """Amount to remove: block weights for a target ratio, else parameters."""
    if target.ratio is not None:
        to_remove = block_weights(model) - round((1 - target.ratio) * dense.block_weights)
    elif target.parameters is not None:
        to_remove = parameters(model) - target.parameters
    else:
        assert target.bytes is not None  # one of the three is set
        to_remove = parameters(model) - target.bytes // stored_bytes
    if to_remove <= 0:
        raise InputError(
            f"{label}: its parent has already reached the target ({target}), because a round "
            "overshoots by up to one step: raise the target, or lower pruning.neuron_multiple"
        )
    return to_remove


def _limits(
    model: PreTrainedModel, layers: list[Layer], dense: DenseReference, settings: PruningSettings
) -> tuple[Limits, list[str]]:
    """Limits of this layout, and notes about what they rule out."""
    attention, notes = None, []
    kinds = set(settings.units)
    if settings.layout == "uniform":
        attention = allowed_attention(model.config)
        if len(attention) == 1 and kinds & {"heads", "kv_groups"}:
            notes.append(
                f"Attention is not pruned: no configuration of {model.config.model_type} has "
                "fewer heads in layout uniform (layout per_layer can prune them)."
            )
    floor = max(1, round(settings.min_neuron_share * dense.neurons))
    return Limits(kinds, settings.neuron_multiple, floor, attention), notes


def _pools(layers: int, settings: PruningSettings) -> list[list[int]]:
    """Layers that keep the same widths; protected layers are in no pool."""
    wrong = [index for index in settings.protect_layers if index >= layers]
    if wrong:
        raise InputError(
            f"pruning.protect_layers names layer {wrong[0]}, and the model's layers are 0 to "
            f"{layers - 1}"
        )
    if settings.layout == "uniform":
        return [list(range(layers))]
    return [[index] for index in range(layers) if index not in settings.protect_layers]


def _units(
    layers: list[Layer], scores: dict[str, list[torch.Tensor]], target: Target
) -> list[LayerUnits]:
    """Scores and sizes of every layer's units, sizes in the unit of the target."""
    with_biases = target.ratio is None
    return [
        LayerUnits(
            {kind: scores[kind][layer.index] for kind in KINDS},
            {kind: layer.unit_weights(kind, with_biases) for kind in KINDS},
        )
        for layer in layers
    ]


def _cut(
    model: PreTrainedModel,
    layers: list[Layer],
    kept: Kept,
    tokens: torch.Tensor,
    settings: PruningSettings,
    batch_tokens: int,
    label: str,
) -> None:
    """Cut layer by layer; each layer is refitted on the activations of the pruned layers before."""
    if settings.refit == "none":
        for layer in layers:
            cut_heads(layer, kept.heads[layer.index])
            cut_neurons(layer, kept.neurons[layer.index])
        return
    batches = joined().own(split(tokens, batch_tokens))
    here = fits_on_device(model, batches)
    stream = BlockStream(model, layers, batches, keep_on_device=here)
    # The unpruned model's stream runs on a copy of one layer at a time, before it is cut.
    unpruned = (
        BlockStream(model, layers, batches, keep_on_device=here) if settings.towards_dense else None
    )
    for layer in track(layers, f"{label} refit"):
        with resident(layer.module, changed=True):
            _cut_layer(layer, kept, stream, unpruned, settings)


def _cut_layer(
    layer: Layer,
    kept: Kept,
    stream: BlockStream,
    unpruned: BlockStream | None,
    settings: PruningSettings,
) -> None:
    """Cut and refit one layer, and advance both streams past it."""
    share = settings.towards_dense
    original = replace(layer, module=copy.deepcopy(layer.module)) if unpruned else layer
    advanced = False
    heads, neurons = kept.heads[layer.index], kept.neurons[layer.index]
    columns = head_columns(heads, layer.head_dim)
    for kind, consumer, keep, cut in (
        ("heads", layer.attention_consumer, columns, partial(cut_heads, layer, heads)),
        ("neurons", layer.mlp_consumer, neurons, partial(cut_neurons, layer, neurons)),
    ):
        weight = matrix(consumer)
        if len(keep) == weight.shape[1]:
            continue
        advanced = kind == "neurons"  # the unpruned block has been run to its end
        towards = unpruned.seen(original, kind, leave=advanced) if unpruned else None
        seen = stream.seen(layer, kind)
        # Not bound to a name: the full H, the largest tensor of a round, is freed before the solve.
        system = system_of(weight, normal_equations(weight, seen, towards, share), keep)
        refitted = joined().first(solve(system, settings.ridge))
        del system
        cut()
        set_columns(consumer, refitted)
    stream.advance(layer)
    if unpruned and not advanced:
        unpruned.advance(original)
