"""Models from wherever the user has them, as ordinary directories that are verified when read."""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import sha256_file, sha256_json
from pruneflow.config import ComputeSettings, ModelSettings
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.models.record import read_record
from pruneflow.models.structure import FAMILIES, family_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "package:"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
CONFIG_FILES = ("config.json", "generation_config.json")


def model_digest(directory: Path) -> str:
    """Digest of a model directory: its weights, configuration and tokenizer, nothing else."""
    names = [*CONFIG_FILES, *TOKENIZER_FILES]
    paths = [directory / name for name in names if (directory / name).is_file()]
    paths += sorted(directory.glob("*.safetensors")) + sorted(directory.glob("*.index.json"))
    return sha256_json({path.name: sha256_file(path) for path in paths})


def tokenizer_digest(directory: Path) -> str:
    """Digest of a model directory's tokenizer files."""
    paths = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    return sha256_json({path.name: sha256_file(path) for path in paths})


def weight_bytes(directory: Path) -> int:
    """Bytes of the weights on disk."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def resolve_device(compute: ComputeSettings) -> str:
    """`cuda` or `cpu`.

    Raises:
        InputError: a GPU is asked for and torch sees none.
    """
    import torch

    if compute.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device is cuda, but torch sees no GPU: set it to auto or cpu")
    return compute.device


def load_model(
    directory: Path, compute: ComputeSettings
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a model directory of the pipeline for measuring or pruning, weights frozen.

    The directory's digest is checked against its record before anything is trusted.

    Raises:
        DamagedArtifactError: bytes changed since the directory was written, or keys do not fit.
    """
    record = read_record(directory)
    if record["digest"] != model_digest(directory):
        raise DamagedArtifactError(
            f"{directory} is damaged (its digest is not its record's): "
            f"delete it and run `dvc repro`"
        )
    return load_unrecorded(directory, compute), load_tokenizer(directory)


def load_unrecorded(directory: Path, compute: ComputeSettings) -> "PreTrainedModel":
    """Load the model of a directory that is being written and has no record yet.

    Raises:
        DamagedArtifactError: keys of the weights and of the configuration do not fit.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, compute.dtype),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    _check_keys(info, str(directory))
    loaded_model: PreTrainedModel = model.to(resolve_device(compute)).eval()
    return loaded_model.requires_grad_(False)


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model directory."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def check_source(settings: ModelSettings) -> None:
    """Find out quickly, without loading weights, whether `model.source` can be used.

    Raises:
        InputError: it does not exist, is not a model, or is of a family that is not supported.
    """
    location, gguf = _locate(settings)
    if gguf is None and Path(location).is_dir():
        config_file = Path(location) / "config.json"
        if not config_file.is_file():
            raise InputError(f"model.source: {location} has no config.json: not a model directory")
        try:
            model_type = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
            raise InputError(f"model.source: {config_file} is not valid JSON") from None
        family_of(_ModelType(model_type))  # type: ignore[arg-type]


class _ModelType:
    """Just enough of a configuration to look up its family."""

    def __init__(self, model_type: str | None) -> None:
        self.model_type = model_type


def load_source(
    settings: ModelSettings,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load the dense model from `model.source` in `model.dtype`, a GGUF file dequantised.

    Raises:
        InputError: the source does not exist, cannot be read, is not supported, or its weights
            hold NaN or infinity (the tensor is named).
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    location, gguf = _locate(settings)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    common: dict[str, Any] = {"revision": settings.revision} if settings.revision else {}
    if gguf is not None:
        common["gguf_file"] = gguf
    try:
        if gguf is None:  # a GGUF header takes seconds to parse, and its model is small
            family_of(AutoConfig.from_pretrained(location, **common))
        extra = {"quantization_config": GgufConfig(dequantize=True)} if gguf else {}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            use_safetensors=None if gguf else True,
            output_loading_info=True,
            **extra,
            **common,
        )
        tokenizer = AutoTokenizer.from_pretrained(location, **common)
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:300]
        raise InputError(
            f"model.source: {settings.source} cannot be loaded: {detail}; "
            f"supported families are {', '.join(sorted(FAMILIES))}"
        ) from None
    model, info = loaded
    family_of(model.config)
    _check_keys(info, settings.source)
    _check_finite(model)
    return _plain(model, dtype), tokenizer


def _locate(settings: ModelSettings) -> tuple[str, str | None]:
    """Where the model is: (directory or hub id, name of the GGUF file in it or None)."""
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
            raise InputError(f"model.source: {path} does not have the sha256 in model.sha256")
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
            f"model.source: {source} is no local directory; for a hub id also set model.revision "
            "to a commit, so that the same model is read every time"
        )
    return source, None


def empty_model(
    kind: type["PreTrainedModel"], config: "PreTrainedConfig", dtype: "torch.dtype"
) -> Any:
    """A model object of class `kind` whose weights are still to be filled in."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model: Any = kind(config)
    model.tie_weights()  # part of the initialisation that was skipped
    return cast_parameters(model, dtype)


def cast_parameters(model: Any, dtype: "torch.dtype") -> Any:
    """Change the type of the weights and leave buffers alone: rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _plain(model: "PreTrainedModel", dtype: "torch.dtype") -> "PreTrainedModel":
    """The same weights in a fresh object whose configuration knows nothing of quantisation."""
    values = model.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        values.pop(key, None)
    values["dtype"] = str(dtype).removeprefix("torch.")
    fresh = empty_model(type(model), type(model.config).from_dict(values), dtype)
    fresh.load_state_dict({name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    fresh.generation_config = model.generation_config
    return fresh.eval().requires_grad_(False)


def _check_keys(info: dict[str, Any], where: str) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            first = sorted(str(key) for key in info[kind])[0]
            raise DamagedArtifactError(
                f"{where}: {kind.replace('_', ' ')} in its weights, {first} first: "
                "weights and config.json do not belong together"
            )


def _check_finite(model: "PreTrainedModel") -> None:
    import torch

    for name, tensor in model.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"model.source: tensor {name} holds NaN or infinity: mend the model")
