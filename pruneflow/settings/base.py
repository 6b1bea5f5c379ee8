"""Base class and common types of all settings, and errors that name the key."""

from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pruneflow.errors import InputError

SettingsT = TypeVar("SettingsT", bound=BaseModel)

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_.-]*$")]
# DVC reads `rounds.NAME` as a path of keys, so a name with a dot would be split.
RoundName = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]*$")]


class Settings(BaseModel):
    """Base class of all settings: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def check(kind: type[SettingsT], values: Any, where: Path | str) -> SettingsT:
    """Validate plain values as typed settings.

    Raises:
        InputError: names the first invalid key and what it should be.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        # A misspelled key is both unknown and missing: report the former.
        problems = error.errors(include_url=False)
        first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "extra_forbidden":
            message = f"unknown key {key}: remove it or correct its spelling"
        elif first["type"] == "missing":
            message = f"{key} is missing: add it"
        elif first["type"] == "value_error":
            message = str(first["ctx"]["error"])
        else:
            message = f"{key} is {first['input']!r}: {first['msg'].lower()}"
            if first["type"] == "string_type" and isinstance(first["input"], bool | float | date):
                message += " (YAML does not read it as text: put it in quotes)"
        raise InputError(f"{where}: {message}") from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        InputError: the file is missing or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: run `pruneflow configure demo` to write one"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): make it readable") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML: {detail}") from None
