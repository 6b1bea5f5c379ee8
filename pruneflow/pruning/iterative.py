"""Iterative pruning as one call: rounds of score, cut and refit on a model in memory."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.artifacts import sha256_json, staged_directory
from pruneflow.compute.placement import place_like
from pruneflow.compute.ranks import joined
from pruneflow.errors import InputError
from pruneflow.measure.perplexity import DomainLoss, perplexity_by_domain
from pruneflow.models.digests import model_digest
from pruneflow.models.export import save
from pruneflow.models.loading import check_weights, load_model
from pruneflow.models.round_record import read_record, write_record
from pruneflow.models.structure import parameters
from pruneflow.models.tensor_digest import tensors_digest
from pruneflow.pruning.rounds import DenseShape, prune_round
from pruneflow.pruning.schedule import Schedule, next_weights, targets
from pruneflow.settings.base import Count
from pruneflow.settings.pipeline import ComputeSettings
from pruneflow.settings.pruning import PruningSettings, Target
from pruneflow.tokens.calibration_set import CalibrationSet
from pruneflow.tokens.mixture import Mixture

log = logging.getLogger(__name__)


class Recipe(Target, PruningSettings):
    """How to prune: how small, in how many rounds, and how each round goes.

    One of `ratio`, `parameters` and `bytes` says how small; see PruningSettings for one round.

    Example: ``Recipe(ratio=0.2, rounds=3, layout="per_layer")``.
    """

    rounds: Count = Field(5, description="In how many rounds.")
    schedule: Schedule = Field(
        "linear", description="linear (equal steps) or geometric (equal shares of what is left)."
    )


@dataclass(frozen=True)
class Pruned:
    """What a recipe made.

    Attributes:
        model: the pruned model, weights frozen.
        achieved_ratio: share of the dense model's block weights that is gone.
        rounds: for each round its target, achieved ratio, domain weights, calibration sequences by
            domain, the calibration set's digest, calibration losses by domain, held-out losses
            (where the closed loop asks for them) and notes.
    """

    model: PreTrainedModel
    achieved_ratio: float
    rounds: list[dict[str, Any]]


def prune(
    model: PreTrainedModel,
    calibration: CalibrationSet | Mapping[str, torch.Tensor],
    recipe: Recipe,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    directory: Path | None = None,
    batch_tokens: int = 2048,
    backward_batch_tokens: int = 1024,
) -> Pruned:
    """Prune a model in rounds.

    In a script that `torchrun` starts, ranks share the calibration text, and the first writes.

    Args:
        model: the dense model; it is cut in place, so load it anew to have it back. It stays where
            it is: on one device, spread over several (``device_map="auto"``), or streamed.
        calibration: a calibration set, or token ids by domain, ``[sequences, tokens]`` each,
            without padding. Of a set a round takes what its mixture says, and with
            `domain_feedback` more of the domains that lost more; of token ids it takes all.
        recipe: what to do.
        tokenizer: saved with every round; needed with `directory`.
        directory: where every round is written as a model directory, ``r1`` and so on. Rounds
            that are there already, of the same model, recipe and text, are not done again.
        batch_tokens: tokens in one forward pass (a memory bound).
        backward_batch_tokens: tokens in one forward and backward pass, which keeps one block's
            activations.

    Raises:
        InputError: the model's weights hold NaN or infinity, are of another type than float32,
            float64 or bfloat16, or its device map offloads some or parts a block, the text is of
            another tokenizer or longer than the model knows, `domain_feedback` has no held-out
            text, the target cannot be reached, or a round in `directory` is of another run.
        DamagedArtifactError: a round in `directory` is damaged.
    """
    place_like(model, model)
    chosen = _chosen(model, calibration)
    validation = _held_out(chosen) if recipe.domain_feedback else {}
    check_weights(model)
    if directory is not None and tokenizer is None:
        raise InputError("prune: with a directory give the tokenizer too: rounds are saved with it")
    whole = _whole(model, recipe)
    goal = Target(ratio=recipe.ratio, parameters=recipe.parameters, bytes=recipe.bytes)
    dense = DenseShape.of(model)
    run = _identity(model, chosen, recipe) if directory else ""

    def losses(network: PreTrainedModel, label: str) -> dict[str, DomainLoss]:
        """Held-out losses, where the closed loop asks for them."""
        if not validation:
            return {}
        return perplexity_by_domain(network, validation, batch_tokens, f"{label} validation")

    dense_losses = losses(model, "dense")
    weights = chosen.mixture.weights
    rounds: list[dict[str, Any]] = []
    for number, target in enumerate(targets(goal, recipe.rounds, recipe.schedule, whole), start=1):
        name = f"r{number}"
        place = directory / name if directory else None
        if place is not None and place.is_dir():
            model, facts = _resume(place, run, model)
        else:
            blocks = chosen.take(weights)
            result = prune_round(
                model,
                blocks,
                target,
                dense,
                recipe,
                weights=weights,
                stored_bytes=model.dtype.itemsize,
                batch_tokens=batch_tokens,
                backward_batch_tokens=backward_batch_tokens,
                label=name,
            )
            model = result.model
            facts = {
                "round": name,
                "target": target.model_dump(),
                "achieved_ratio": result.achieved_ratio,
                "weights": weights,
                "sequences": {domain: len(rows) for domain, rows in blocks.items()},
                "calibration_set": chosen.digest,
                "calibration_losses": result.scores[recipe.score].losses,
                "losses": losses(model, name),
                "notes": result.notes,
            }
            if place is not None and joined().is_first:
                _save(place, run, model, tokenizer, dense, facts)
        rounds.append(facts)
        if dense_losses and facts["losses"]:
            weights = next_weights(weights, dense_losses, facts["losses"], recipe.domain_feedback)
    return Pruned(model, rounds[-1]["achieved_ratio"], rounds)


def _chosen(
    model: PreTrainedModel, calibration: CalibrationSet | Mapping[str, torch.Tensor]
) -> CalibrationSet:
    """The calibration set, or one of all the blocks given, their domains weighing the same."""
    if isinstance(calibration, CalibrationSet):
        check_blocks(model, calibration.blocks["calibration"])
        return calibration
    check_blocks(model, calibration)
    counts = {domain: len(rows) for domain, rows in calibration.items()}
    mixture = Mixture(dict.fromkeys(counts, 1 / len(counts)), counts)
    blocks = {"calibration": dict(calibration)}
    return CalibrationSet(blocks, tensors_digest(calibration), {"mixture": mixture.facts})


def check_blocks(model: PreTrainedModel, blocks: Mapping[str, torch.Tensor]) -> None:
    """Check that a model can read calibration blocks.

    Args:
        model: the model.
        blocks: token ids by domain, ``[sequences, tokens]``.

    Raises:
        InputError: there are none, or they hold tokens or are of a length that it does not know.
    """
    if not blocks:
        raise InputError("prune: there is no calibration text: give it at least one domain")
    known = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    longest = getattr(model.config, "max_position_embeddings", None)
    for domain, tokens in blocks.items():
        if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] < 2:
            raise InputError(
                f"prune: domain {domain} has no blocks [sequences, tokens] (shape "
                f"{list(tokens.shape)}): give it more text"
            )
        if int(tokens.min()) < 0 or int(tokens.max()) >= known:
            raise InputError(
                f"prune: domain {domain} holds token {int(tokens.max())}, and the model knows "
                f"{known} tokens: make its blocks with the model's own tokenizer"
            )
        if longest is not None and tokens.shape[1] > longest:
            raise InputError(
                f"prune: domain {domain} has sequences of {tokens.shape[1]} tokens, and the model "
                f"knows sequences of up to {longest} (max_position_embeddings): lower "
                "sequence_length"
            )


def _held_out(chosen: CalibrationSet) -> dict[str, torch.Tensor]:
    """Held-out text of every domain, which the closed loop is steered by."""
    held_out = chosen.blocks.get("validation", {})
    for domain in chosen.blocks["calibration"]:
        if domain not in held_out:
            raise InputError(
                f"prune: domain_feedback needs held-out text, and domain {domain} has none: give a "
                "CalibrationSet, which holds some of every domain back, or set domain_feedback to 0"
            )
    return {domain: held_out[domain] for domain in chosen.blocks["calibration"]}


def _whole(model: PreTrainedModel, recipe: Recipe) -> int | None:

    if recipe.ratio is not None:
        return None
    return parameters(model) * (1 if recipe.parameters is not None else model.dtype.itemsize)


def _identity(model: PreTrainedModel, chosen: CalibrationSet, recipe: Recipe) -> str:
    """Digest of all that decides what the rounds come to."""
    return sha256_json(
        {
            "model": tensors_digest(model.state_dict()),
            "calibration": tensors_digest(chosen.blocks["calibration"]),
            "validation": tensors_digest(chosen.blocks.get("validation", {})),
            "mixture": chosen.mixture.facts,
            "recipe": recipe.model_dump(mode="json"),
        }
    )


def _save(
    place: Path,
    run: str,
    model: PreTrainedModel,
    tokenizer: Any,
    dense: DenseShape,
    facts: dict[str, Any],
) -> None:

    with staged_directory(place) as folder:
        save(model, tokenizer, folder, model.dtype)
        digest = model_digest(folder)
        write_record(
            folder,
            status="done",
            delivered=facts["round"],
            delivered_digest=digest,
            digest=digest,
            dense={"block_weights": dense.block_weights, "neurons": dense.neurons},
            run=run,
            **facts,
        )


def _resume(
    place: Path, run: str, model: PreTrainedModel
) -> tuple[PreTrainedModel, dict[str, Any]]:

    record = read_record(place)
    if record.get("run") != run:
        raise InputError(
            f"{place} is a round of another run (model, text or recipe differ): give another "
            "directory, or delete it"
        )
    dtype: Any = str(model.dtype).removeprefix("torch.")
    loaded, _ = load_model(place, ComputeSettings(device="cpu", dtype=dtype))
    place_like(loaded, model)
    log.info("%s: taken from %s", record["round"], place)
    return loaded, record
