"""Writes configs/pipeline.yaml: whole from a profile, or its rounds from a target."""

from pathlib import Path
from typing import Any

from pruneflow.artifacts import staged_file
from pruneflow.config import (
    DENSE,
    PIPELINE_FILE,
    PipelineSettings,
    load_settings,
    parse_settings,
    read_yaml,
    write_settings,
)
from pruneflow.errors import InputError

PROFILES = Path("configs/profiles")
SCHEDULES = ("linear", "geometric")


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


def plan(ratio: float, rounds: int, schedule: str) -> PipelineSettings:
    """Write a new descent into configs/pipeline.yaml; everything else stays as it is.

    Raises:
        InputError: a value is out of range.
    """
    values = load_settings().model_dump(mode="json")
    values["rounds"] = descent(ratio, rounds, schedule)
    values["final_round"] = list(values["rounds"])[-1]
    settings = parse_settings(values, PIPELINE_FILE)
    write_settings(settings)
    return settings


def descent(ratio: float, rounds: int, schedule: str) -> dict[str, dict[str, Any]]:
    """The rounds that lead to `ratio`: their names, parents and cumulative ratios.

    Args:
        ratio: share of the dense model's block weights that is gone at the end, 0 to 1.
        rounds: how many.
        schedule: ``linear`` removes the same number of weights in each round, ``geometric`` the
            same share of what the round before left.

    Raises:
        InputError: a value is out of range.
    """
    if not 0 < ratio < 1:
        raise InputError(f"the ratio is {ratio:g}: give a share between 0 and 1, e.g. 0.2")
    if not 1 <= rounds <= 100:
        raise InputError(f"the number of rounds is {rounds}: give 1 to 100")
    if schedule not in SCHEDULES:
        raise InputError(f"there is no schedule {schedule}: use {' or '.join(SCHEDULES)}")
    steps = range(1, rounds + 1)
    if schedule == "linear":
        ratios = [ratio * step / rounds for step in steps]
    else:
        ratios = [1 - (1 - ratio) ** (step / rounds) for step in steps]
    ratios[-1] = ratio
    names = [DENSE, *(f"r{step}" for step in steps)]
    return {
        name: {"parent": parent, "ratio": round(value, 6)}
        for parent, name, value in zip(names[:-1], names[1:], ratios, strict=True)
    }


def _profiles() -> list[Path]:
    return sorted(PROFILES.glob("*.yaml"))


def _same(path: Path, settings: PipelineSettings) -> bool:
    try:
        return load_settings(path) == settings
    except InputError:
        return False
