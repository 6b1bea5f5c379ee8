"""Recipes of a sweep: configs/sweep.yaml lists their differences from configs/pipeline.yaml."""

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pruneflow.errors import InputError
from pruneflow.paths import SWEEP_FILE
from pruneflow.plan import dense_size, plan_rounds
from pruneflow.pruning.schedule import Schedule
from pruneflow.settings.base import Count, Name, Settings, Share, check, read_yaml
from pruneflow.settings.pipeline import PipelineSettings, parse_settings
from pruneflow.settings.pruning import Target


class RecipeSettings(Settings):
    """Settings that one recipe changes; all others are those of configs/pipeline.yaml."""

    ratio: Share | None = Field(None, description="Share of the block weights to remove.")
    parameters: Count | None = Field(None, description="Or: number of parameters to keep.")
    bytes: Count | None = Field(None, description="Or: bytes of weights to keep.")
    rounds: Count | None = Field(None, le=100, description="Number of rounds.")
    schedule: Schedule | None = Field(
        None, description="linear (equal steps, the default) or geometric (equal shares)."
    )
    layout: Literal["uniform", "per_layer"] | None = Field(None, description="pruning.layout.")
    domains: list[Name] | None = Field(
        None,
        min_length=1,
        description="Domains to calibrate on; perplexity is measured on all documents.domains.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Any other setting, by dotted name."
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if len(self.target) > 1:
            raise ValueError("give at most one of ratio, parameters and bytes")
        return self

    @property
    def target(self) -> dict[str, float]:
        """Target of the last round, if the recipe has one."""
        return self.model_dump(include={"ratio", "parameters", "bytes"}, exclude_none=True)


class SweepSettings(Settings):
    """The complete configs/sweep.yaml."""

    recipes: dict[Name, RecipeSettings] = Field(min_length=1)


def load_recipes(
    settings: PipelineSettings, path: Path = SWEEP_FILE
) -> dict[str, PipelineSettings]:
    """Read configs/sweep.yaml; returns the pipeline settings of each recipe, by name.

    Raises:
        InputError: the file is missing, is not YAML, or a key is unknown or out of range.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: restore it from git, or write your recipes there")
    sweep = check(SweepSettings, read_yaml(path), path)
    return {
        name: _expand(recipe, settings, Path(f"{path}, recipe {name}"))
        for name, recipe in sweep.recipes.items()
    }


def _expand(recipe: RecipeSettings, settings: PipelineSettings, where: Path) -> PipelineSettings:
    values = settings.model_dump(mode="json")
    for key, value in recipe.overrides.items():
        _override(values, key, value, where)
    if recipe.layout is not None:
        values["pruning"]["layout"] = recipe.layout
    if recipe.domains is not None:
        values["calibration"] |= _calibrated_on(recipe.domains, values["calibration"])
    if recipe.target or recipe.rounds or recipe.schedule:
        final = settings.rounds[settings.final_round]
        goal = Target(**(recipe.target or final.model_dump(exclude={"parent"})))
        rounds = recipe.rounds or len(settings.rounds)
        schedule = recipe.schedule or "linear"
        values["rounds"] = plan_rounds(goal, rounds, schedule, dense_size(goal, settings.model))
        values["final_round"] = list(values["rounds"])[-1]
    return parse_settings(values, where)


def _override(values: dict[str, Any], key: str, value: Any, where: Path) -> None:
    """Set one value by its dotted name; it is validated later with all other settings."""
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(
                f"{where}: unknown key {key} in overrides: {section} has no settings below it, "
                "correct the name"
            )
    values[last] = value


def _calibrated_on(domains: list[str], calibration: dict[str, Any]) -> dict[str, Any]:
    """Mixture settings for a subset of the domains, in the same proportions."""
    weights = {name: calibration["weights"].get(name) for name in domains}
    tokens = {name: calibration["tokens"].get(name) for name in domains}
    changed: dict[str, Any] = {"domains": domains}
    if all(weights.values()):
        total = math.fsum(weights.values())
        changed["weights"] = {name: weight / total for name, weight in weights.items()}
    if all(tokens.values()):
        changed["tokens"] = tokens
    return changed
