"""Compare installed versions with those of pyproject.toml and the lock."""

import platform
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from pruneflow.errors import InputError

PROJECT = Path("pyproject.toml")
LOCK = Path("requirements.lock")


class Versions(NamedTuple):
    """The direct dependencies of the project.

    Attributes:
        installed: version by package.
        wrong: one line for each that is missing or out of bounds.
        unlocked: one line for each that is within bounds but differs from the lock.
    """

    installed: dict[str, str]
    wrong: list[str]
    unlocked: list[str]


def check_python() -> str:
    """Return the version of this Python.

    Raises:
        InputError: the project does not support it.
    """
    here, wanted = platform.python_version(), _project()["requires-python"]
    if here not in SpecifierSet(wanted):
        raise InputError(
            f"this is Python {here}, and the project needs {wanted}: delete .venv and run "
            "`make setup PYTHON=python3.11`"
        )
    return here


def compare_packages() -> Versions:
    """Compare the packages that pyproject.toml depends on with what is installed.

    Raises:
        InputError: pyproject.toml or the lock is missing or damaged.
    """
    pins = _pins()
    found = Versions({}, [], [])
    for requirement in map(Requirement, _project()["dependencies"]):
        name = canonicalize_name(requirement.name)
        try:
            found.installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.wrong.append(f"{name} is not installed")
            continue
        installed = f"{name} is {found.installed[name]}"
        # A local build, such as torch's +cpu, counts as its public version.
        version = found.installed[name].partition("+")[0]
        if version not in requirement.specifier:
            found.wrong.append(f"{installed}, and the project needs {requirement.specifier}")
        elif name in pins and version not in pins[name]:
            found.unlocked.append(f"{installed}, and {LOCK} has {pins[name]}")
    return found


def _pins() -> dict[str, SpecifierSet]:
    """Return the versions that the lock pins for this Python and system, by package."""
    try:
        lines = LOCK.read_text(encoding="utf-8").splitlines()
        pinned = [Requirement(line.rstrip("\\ ")) for line in lines if line[:1].isalnum()]
    except (OSError, InvalidRequirement):
        raise InputError(f"{LOCK} is missing or damaged: restore it from git") from None
    return {
        canonicalize_name(each.name): each.specifier
        for each in pinned
        if each.marker is None or each.marker.evaluate()
    }


def _project() -> dict[str, Any]:
    try:
        values: dict[str, Any] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError):
        raise InputError(f"{PROJECT} is missing or damaged: restore it from git") from None
    return values
