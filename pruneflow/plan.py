"""Writes configs/pipeline.yaml: whole from a profile, or its rounds from a target."""

from pathlib import Path
from typing import Any

from pruneflow.artifacts import staged_file
from pruneflow.errors import InputError
from pruneflow.models.digests import weight_file_bytes
from pruneflow.models.round_record import read_round_record
from pruneflow.paths import CHECKPOINTS
from pruneflow.pruning.schedule import targets
from pruneflow.settings.base import read_yaml
from pruneflow.settings.pipeline import (
    DENSE,
    PIPELINE_FILE,
    ModelSettings,
    PipelineSettings,
    load_settings,
    parse_settings,
    write_settings,
)
from pruneflow.settings.pruning import Target

PROFILES = Path("configs/profiles")


def configure(profile: str) -> Path | None:
    """Write configs/pipeline.yaml from configs/profiles/PROFILE.yaml and the defaults.

    Returns:
        Where the former file was kept, when it differed; else None.

    Raises:
        InputError: there is no such profile, or it does not make valid settings.
    """
    settings = load_profile(profile)
    kept = None
    if PIPELINE_FILE.is_file():
        if _same(PIPELINE_FILE, settings):
            return None
        # What a profile gives can be had again; what a user wrote must not be lost.
        if not any(_same(PIPELINE_FILE, load_profile(path.stem)) for path in _profiles()):
            kept = PIPELINE_FILE.with_suffix(".yaml.orig")
            with staged_file(kept) as temporary:
                temporary.write_bytes(PIPELINE_FILE.read_bytes())
    write_settings(settings)
    return kept


def load_profile(profile: str) -> PipelineSettings:
    """The settings of a profile, defaults filled in.

    Raises:
        InputError: there is no such profile, or it does not make valid settings.
    """
    path = PROFILES / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(path.stem for path in _profiles()) or "none"
        raise InputError(f"there is no profile {profile} in {PROFILES}: use {known}")
    return parse_settings(read_yaml(path), path)


def plan(goal: Target, rounds: int, schedule: str) -> PipelineSettings:
    """Write a new descent into configs/pipeline.yaml; everything else stays as it is.

    Raises:
        InputError: a value is out of range, or a goal in parameters or bytes is given before the
            dense model is there to count them.
    """
    settings = load_settings()
    values = settings.model_dump(mode="json")
    values["rounds"] = descent(goal, rounds, schedule, dense_size(goal, settings.model))
    values["final_round"] = list(values["rounds"])[-1]
    settings = parse_settings(values, PIPELINE_FILE)
    write_settings(settings)
    return settings


def descent(
    goal: Target, rounds: int, schedule: str, whole: int | None = None
) -> dict[str, dict[str, Any]]:
    """The rounds that lead to a goal: their names, parents and targets; see `schedule.targets`."""
    names = [DENSE, *(f"r{step}" for step in range(1, rounds + 1))]
    planned = targets(goal, rounds, schedule, whole)
    return {
        name: {"parent": parent, **target.model_dump()}
        for parent, name, target in zip(names[:-1], names[1:], planned, strict=True)
    }


def dense_size(goal: Target, model: ModelSettings) -> int | None:
    """What the dense model has of what the goal counts: parameters, or bytes of weights.

    Raises:
        InputError: the dense model is needed and not there, or it is of another source.
    """
    if goal.ratio is not None:
        return None
    directory = CHECKPOINTS / DENSE
    if not directory.is_dir():
        raise InputError(
            f"a goal in parameters or bytes needs the dense model, and {directory} is not there: "
            "run `dvc repro model` first, or give --ratio"
        )

    record = read_round_record(directory)
    if (record.source, record.revision) != (model.source, model.revision):
        raise InputError(
            f"a goal in parameters or bytes needs the dense model, and {directory} is not of "
            f"{model.source}: run `dvc repro model` first, or give --ratio"
        )
    return record.parameters if goal.parameters else weight_file_bytes(directory)


def _profiles() -> list[Path]:
    return sorted(PROFILES.glob("*.yaml"))


def _same(path: Path, settings: PipelineSettings) -> bool:
    try:
        return load_settings(path) == settings
    except InputError:
        return False
