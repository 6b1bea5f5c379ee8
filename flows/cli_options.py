"""What the commands share: `--json`, examples in their help, and completion in the shell.

Completion answers on every press of a key, so it reads files and asks no server.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else there.")]


def examples(*lines: str) -> str:
    """Return the end of a command's help, one example per line."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def one_of(known: Callable[[], list[str]]) -> Callable[[str], list[str]]:
    """Return a completion function: the known names that start with the incomplete word."""

    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in known() if name.startswith(incomplete)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return []  # no error about a broken file during completion

    return complete


def profiles() -> list[str]:
    """Names of the profiles in configs/profiles."""
    return sorted(path.stem for path in Path("configs/profiles").glob("*.yaml"))


def stages() -> list[str]:
    """Stages of dvc.yaml, a round each for its `foreach`."""
    names: list[str] = []
    for name, stage in _yaml("dvc.yaml")["stages"].items():
        names += [f"{name}@{key}" for key in _rounds()] if "foreach" in stage else [name]
    return names


def versions() -> list[str]:
    """Numbers of the versions in a local store, the newest first."""
    from pruneflow.settings.pipeline import RegistrySettings
    from tasks.registry.registered_model import read_registered_model

    model = read_registered_model(RegistrySettings(**_yaml("configs/pipeline.yaml")["registry"]))
    return [] if model is None else list(model.versions)


def models() -> list[str]:
    """Names that `pruneflow compare` accepts."""
    from tasks.registry.registered_model import ALIASES

    return [*ALIASES, "model", "dense", *_rounds(), *versions()]


def schedules() -> list[str]:
    """Ways of planning rounds."""
    return ["linear", "geometric"]


def _rounds() -> list[str]:
    return list(_yaml("configs/pipeline.yaml")["rounds"])


def _yaml(file: str) -> Mapping[str, Any]:
    import yaml

    try:
        values: Mapping[str, Any] = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(file) from error
    return values
