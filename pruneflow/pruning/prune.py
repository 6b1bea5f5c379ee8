"""Iterative pruning as one call: all rounds of a recipe on a model in memory."""

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
from pruneflow.measure.perplexity import perplexity_by_domain
from pruneflow.models.families import family_of
from pruneflow.models.loading import check_weights, load_model
from pruneflow.models.round_record import RoundRecord, Validation, read_round_record
from pruneflow.models.structure import dense_reference, parameters
from pruneflow.models.tensor_digest import tensors_digest
from pruneflow.models.token_blocks import check_blocks
from pruneflow.pruning.advance import RoundMeasures, RoundPlan, advance_round
from pruneflow.pruning.schedule import Schedule, targets
from pruneflow.records import DomainLoss
from pruneflow.settings.base import Count
from pruneflow.settings.pipeline import DENSE, ComputeSettings
from pruneflow.settings.pruning import PruningSettings, Target
from pruneflow.tokens.calibration_set import CalibrationSet
from pruneflow.tokens.mixture import Mixture

log = logging.getLogger(__name__)


class Recipe(Target, PruningSettings):
    """A pruning recipe: target size, number of rounds, and the settings of each round.

    Give the target as one of `ratio`, `parameters` and `bytes`.

    Example: ``Recipe(ratio=0.2, rounds=3, layout="per_layer")``.
    """

    rounds: Count = Field(5, description="Number of rounds.")
    schedule: Schedule = Field(
        "linear", description="linear (equal steps) or geometric (equal shares of what remains)."
    )


@dataclass(frozen=True)
class Pruned:
    """Result of a recipe.

    Attributes:
        model: the pruned model, weights frozen.
        rounds: the record of each round.
    """

    model: PreTrainedModel
    rounds: list[RoundRecord]

    @property
    def achieved_ratio(self) -> float:
        """Share of the dense model's block weights that is removed."""
        ratio = self.rounds[-1].achieved_ratio
        assert ratio is not None
        return ratio


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
        model: the dense model. It is cut in place; load it again to get the dense model. It stays
            where it is: on one device, spread over several (``device_map="auto"``), or streamed.
        calibration: a calibration set, or token ids by domain, ``[sequences, tokens]`` each,
            without padding. From a set, each round takes the sequences of its mixture, and with
            `domain_feedback` more of the domains that lost more; token ids are all used.
        recipe: target, rounds and settings.
        tokenizer: saved with every round; needed with `directory`.
        directory: where every round is written as a model directory, ``r1`` and so on. Pruning
            resumes after the rounds that are there already, of the same model, recipe and text.
        batch_tokens: tokens in one forward pass (a memory bound).
        backward_batch_tokens: tokens in one forward and backward pass, which keeps one block's
            activations.

    Raises:
        InputError: the model's weights contain NaN or infinity or have an unsupported data type,
            its device map offloads weights or splits a block, the text is of another tokenizer or
            longer than the model supports, `domain_feedback` has no held-out text, the target
            cannot be reached, or a round in `directory` is of another run.
        DamagedArtifactError: a round in `directory` is damaged.
    """
    family_of(model.config.model_type)
    place_like(model, model)
    calibration = _calibration_set(model, calibration)
    validation = _held_out(calibration) if recipe.domain_feedback else {}
    check_weights(model)
    if directory is not None and tokenizer is None:
        raise InputError("prune: with a directory give the tokenizer too: rounds are saved with it")
    goal = Target(ratio=recipe.ratio, parameters=recipe.parameters, bytes=recipe.bytes)
    planned = targets(goal, recipe.rounds, recipe.schedule, _dense_size(model, recipe))
    run = _identity(model, calibration, recipe) if directory else None
    rounds = _finished_rounds(directory, len(planned), run)
    dense = RoundRecord(round=DENSE, status="done", delivered=DENSE, dense=dense_reference(model))
    parent = rounds[-1] if rounds else dense

    def losses(network: PreTrainedModel, label: str) -> dict[str, DomainLoss]:
        return perplexity_by_domain(network, validation, batch_tokens, f"{label} validation")

    dense_losses = losses(model, "dense") if validation and len(rounds) < len(planned) else {}
    if rounds and directory is not None:
        model = _load_round(directory / parent.round, model)
    for number, target in enumerate(planned[len(rounds) :], start=len(rounds) + 1):
        plan = RoundPlan(
            f"r{number}",
            target,
            recipe,
            calibration,
            model.dtype,
            batch_tokens,
            backward_batch_tokens,
        )

        def measure(network: PreTrainedModel, label: str = plan.name) -> RoundMeasures:
            """Measure held-out losses if `domain_feedback` needs them."""
            if not validation:
                return RoundMeasures()
            return RoundMeasures(Validation(dense=dense_losses, pruned=losses(network, label)))

        if directory is not None and joined().is_first:
            with staged_directory(directory / plan.name) as folder:
                model, parent = advance_round(
                    model, parent, plan, measure, tokenizer=tokenizer, directory=folder, run=run
                )
        else:
            model, parent = advance_round(model, parent, plan, measure, run=run)
        rounds.append(parent)
    return Pruned(model, rounds)


def _calibration_set(
    model: PreTrainedModel, calibration: CalibrationSet | Mapping[str, torch.Tensor]
) -> CalibrationSet:
    """The calibration set, or a set of all the blocks given, with equally weighted domains."""
    if isinstance(calibration, CalibrationSet):
        check_blocks(model, calibration.blocks["calibration"], "prune", "calibration")
        return calibration
    check_blocks(model, calibration, "prune", "calibration")
    counts = {domain: len(rows) for domain, rows in calibration.items()}
    mixture = Mixture(dict.fromkeys(counts, 1 / len(counts)), counts)
    blocks = {"calibration": dict(calibration)}
    return CalibrationSet(blocks, tensors_digest(calibration), {"mixture": mixture.facts})


def _held_out(calibration: CalibrationSet) -> dict[str, torch.Tensor]:
    """Held-out text of every domain, which steers the closed loop."""
    held_out = calibration.blocks.get("validation", {})
    for domain in calibration.blocks["calibration"]:
        if domain not in held_out:
            raise InputError(
                f"prune: domain_feedback needs held-out text, and domain {domain} has none: give a "
                "CalibrationSet, which has some for every domain, or set domain_feedback to 0"
            )
    return {domain: held_out[domain] for domain in calibration.blocks["calibration"]}


def _dense_size(model: PreTrainedModel, recipe: Recipe) -> int | None:
    if recipe.ratio is not None:
        return None
    return parameters(model) * (1 if recipe.parameters is not None else model.dtype.itemsize)


def _identity(model: PreTrainedModel, calibration: CalibrationSet, recipe: Recipe) -> str:
    """Digest of everything that the rounds depend on."""
    return sha256_json(
        {
            "model": tensors_digest(model.state_dict()),
            "calibration": tensors_digest(calibration.blocks["calibration"]),
            "validation": tensors_digest(calibration.blocks.get("validation", {})),
            "mixture": calibration.mixture.facts,
            "recipe": recipe.model_dump(mode="json"),
        }
    )


def _finished_rounds(directory: Path | None, planned: int, run: str | None) -> list[RoundRecord]:
    """Records of the rounds that an earlier run of the same recipe finished, in order."""
    rounds: list[RoundRecord] = []
    while directory is not None and len(rounds) < planned:
        place = directory / f"r{len(rounds) + 1}"
        if not place.is_dir():
            break
        record = read_round_record(place)
        if record.run != run:
            raise InputError(
                f"{place} is a round of another run (model, text or recipe differ): give another "
                "directory, or delete it"
            )
        rounds.append(record)
    return rounds


def _load_round(place: Path, like: PreTrainedModel) -> PreTrainedModel:
    """Load a finished round in the data type of a model, and put it where that model is."""
    dtype: Any = str(like.dtype).removeprefix("torch.")
    loaded, _ = load_model(place, ComputeSettings(device="cpu", dtype=dtype))
    log.info("prune: resumes from %s", place)
    return place_like(loaded, like)
