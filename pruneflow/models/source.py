"""Sources of the dense model: a directory, a hub id, a GGUF file, a file of a package.

Nothing here loads weights, so a wrong source fails quickly.
"""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from safetensors import SafetensorError, safe_open

from pruneflow.artifacts import read_json, sha256_file
from pruneflow.errors import InputError
from pruneflow.models.families import family_of
from pruneflow.settings.pipeline import ModelSettings

PACKAGE = "package:"


def check_source(settings: ModelSettings) -> tuple[str, str | None]:
    """Check `model.source` without loading weights.

    Returns:
        The directory or hub id of the model, and the name of its GGUF file or None.

    Raises:
        InputError: it does not exist, is not a model, or its family is not supported.
    """
    location, gguf = _locate(settings)
    if gguf is None and Path(location).is_dir():
        config_file = Path(location) / "config.json"
        if not config_file.is_file():
            raise InputError(f"model.source: {location} has no config.json: give a model directory")
        try:
            values = json.loads(config_file.read_text(encoding="utf-8"))
            model_type, quantisation = values.get("model_type"), values.get("quantization_config")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            raise InputError(f"model.source: {config_file} is not valid JSON: correct it") from None
        family_of(model_type)
        check_unquantised(quantisation, settings.source)
        if (Path(location) / "adapter_config.json").exists():
            raise InputError(
                f"model.source: {location} has an adapter (adapter_config.json): merge it into the "
                "model with PEFT's merge_and_unload, or remove that file"
            )
    return location, gguf


def check_unquantised(quantisation: Any, source: str) -> None:
    """Check the entry `quantization_config` of a configuration.

    Raises:
        InputError: the weights are quantised.
    """
    if quantisation is not None:
        named = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        raise InputError(
            f"model.source: the configuration of {source} names quantised weights ({named}): give "
            "the model before quantisation"
        )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that transformers reads: those of the index, or model.safetensors.

    Raises:
        InputError: the index is damaged, or a file that it names is missing.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{index} has no weight_map: give a complete model") from None
        missing = next((name for name in names if not (directory / name).is_file()), None)
        if missing is not None:
            raise InputError(f"{index} names {missing}, which is missing: give a complete model")
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    return [single] if single.is_file() else sorted(directory.glob("*.safetensors"))


def source_parameters(settings: ModelSettings) -> int | None:
    """Count the parameters of `model.source` without loading them; None for hub ids.

    Raises:
        InputError: as `check_source`, or the files cannot be read.
    """
    location, gguf = _locate(settings)
    try:
        if gguf is not None:
            return sum(int(each.n_elements) for each in GGUFReader(Path(location) / gguf).tensors)
        if not Path(location).is_dir():
            return None
        total = 0
        for file in weight_files(Path(location)):
            with safe_open(file, framework="numpy") as tensors:
                shapes = (tensors.get_slice(name).get_shape() for name in tensors.keys())  # noqa: SIM118
                total += sum(math.prod(shape) for shape in shapes)
        return total
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise InputError(
            f"model.source: {settings.source} cannot be read ({error}): give a complete model"
        ) from None


def _locate(settings: ModelSettings) -> tuple[str, str | None]:
    source = settings.source
    if source.startswith(PACKAGE):
        package, _, name = source.removeprefix(PACKAGE).partition("/")
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise InputError(
                f"model.source: package {package} is not installed: run `make setup`, "
                "or give a model directory"
            )
        path = Path(found.submodule_search_locations[0]) / name
    else:
        path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"model.source: {source} does not exist: correct the path")
        if settings.sha256 and sha256_file(path) != settings.sha256:
            raise InputError(
                f"model.source: {path} does not have the sha256 in model.sha256: correct one"
            )
        return str(path.parent), path.name
    for key in ("sha256", "revision") if path.is_dir() else ("sha256",):
        if getattr(settings, key) is not None:
            kind = "a local directory" if path.is_dir() else "a hub id"
            raise InputError(f"model.{key} is not used for {kind} such as {source}: set it to null")
    if path.is_dir():
        return str(path), None
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise InputError(
            f"model.source: {source} does not exist: give a model directory, a .gguf file or a "
            "hub id with its revision"
        )
    if settings.revision is None:
        raise InputError(
            f"model.source: {source} is not a local directory: give one, or set model.revision to "
            "the commit of a hub id"
        )
    return source, None
