"""The installed versions that results depend on, in a file that stages of dvc.yaml depend on."""

from importlib.metadata import PackageNotFoundError, version

from pruneflow.artifacts import write_json
from pruneflow.paths import ENVIRONMENT

STAGE = "environment"
PACKAGES = ("gguf", "lm-eval", "tokenizers", "torch", "transformers")


def installed_versions() -> dict[str, str | None]:
    """Return the version of each package; None of one that is not installed.

    A local build such as ``+cpu`` is part of it: builds of one version sum in different orders.
    """
    return {name: _version(name) for name in PACKAGES}


def write_environment() -> None:
    """Write data/environment.json."""
    write_json(ENVIRONMENT, installed_versions())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
