"""The installed versions that results depend on, in a file that stages of dvc.yaml depend on."""

from importlib.metadata import PackageNotFoundError, version

STAGE = "environment"
PACKAGES = ("gguf", "lm-eval", "tokenizers", "torch", "transformers")


def installed_versions() -> dict[str, str | None]:
    """Return the version of each package; None of one that is not installed.

    A local build such as ``+cpu`` is part of it: builds of one version sum in different orders.
    """
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
