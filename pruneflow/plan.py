"""Write configs/pipeline.yaml: the complete file from a profile, or its rounds from a target."""

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
        The backup of the previous file, if it held a user's changes; else None.

    Raises:
        InputError: there is no such profile, or it does not make valid settings.
    """
    settings = load_profile(profile)
    kept = None
    if PIPELINE_FILE.is_file():
        if _same(PIPELINE_FILE, settings):
            return None
        # A file equal to a profile can be written again; a user's changes must not be lost.
        if not any(_same(PIPELINE_FILE, load_profile(path.stem)) for path in _profiles()):
            kept = PIPELINE_FILE.with_suffix(".yaml.orig")
            with staged_file(kept) as temporary:
                temporary.write_bytes(PIPELINE_FILE.read_bytes())
    write_settings(settings)
    return kept


def load_profile(profile: str) -> PipelineSettings:
    """Read a profile, with defaults filled in.

    Raises:
        InputError: there is no such profile, or it does not make valid settings.
    """
    path = PROFILES / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(path.stem for path in _profiles()) or "none"
        raise InputError(f"there is no profile {profile} in {PROFILES}: use {known}")
    return parse_settings(read_yaml(path), path)


def plan(goal: Target, rounds: int, schedule: str) -> PipelineSettings:
    """Write a new pruning schedule into configs/pipeline.yaml; other settings stay unchanged.

    Raises:
        InputError: a value is out of range, or the goal is in parameters or bytes and the dense
            model does not exist yet.
    """
    settings = load_settings()
    values = settings.model_dump(mode="json")
    values["rounds"] = plan_rounds(goal, rounds, schedule, dense_size(goal, settings.model))
    values["final_round"] = list(values["rounds"])[-1]
    settings = parse_settings(values, PIPELINE_FILE)
    write_settings(settings)
    return settings


def plan_rounds(
    goal: Target, rounds: int, schedule: str, dense: int | None = None
) -> dict[str, dict[str, Any]]:
    """The rounds of a pruning schedule: their names, parents and targets; see `schedule.targets`.

    `dense` is the size of the dense model, needed for a goal in parameters or bytes (`dense_size`).
    """
    names = [DENSE, *(f"r{step}" for step in range(1, rounds + 1))]
    planned = targets(goal, rounds, schedule, dense)
    return {
        name: {"parent": parent, **target.model_dump()}
        for parent, name, target in zip(names[:-1], names[1:], planned, strict=True)
    }


def dense_size(goal: Target, model: ModelSettings) -> int | None:
    """Size of the dense model in the unit of the goal: parameters, or bytes of weights.

    Raises:
        InputError: the dense model is needed and missing, or comes from another source.
    """
    if goal.ratio is not None:
        return None
    directory = CHECKPOINTS / DENSE
    if not directory.is_dir():
        raise InputError(
            f"a goal in parameters or bytes needs the dense model, and {directory} is missing: "
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
