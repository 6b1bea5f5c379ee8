"""Loading of models: from the user's source, and from verified directories of the pipeline."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from pruneflow.artifacts import read_json
from pruneflow.compute.placement import place_by_settings
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.models.digests import model_digest
from pruneflow.models.families import FAMILIES, family_of
from pruneflow.models.per_layer import is_per_layer, load_per_layer
from pruneflow.models.round_record import read_round_record
from pruneflow.models.source import check_source, check_unquantised, weight_files
from pruneflow.models.structure import record_tying
from pruneflow.settings.pipeline import ComputeSettings, ModelSettings

STORED_TYPES = ("F64", "F32", "F16", "BF16")


def resolve_device(compute: ComputeSettings) -> str:
    """`cuda` or `cpu`; `cuda` is the rank's current GPU.

    Raises:
        InputError: a GPU is requested and torch finds none.
    """
    if compute.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device is cuda, but torch finds no GPU: set it to auto or cpu")
    return compute.device


def resolve_dtype(compute: ComputeSettings, directory: Path) -> str:
    """Compute type of the model in `directory`: `bfloat16` or `float32`."""
    if compute.dtype != "auto":
        return compute.dtype
    config = read_json(directory / "config.json")
    if config.get("dtype", config.get("torch_dtype")) != "bfloat16":
        return "float32"
    return "bfloat16" if supports_bfloat16(resolve_device(compute)) else "float32"


def supports_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16.

    A CPU without them (AVX-512 BF16, AMX) is ten times slower in bfloat16 than in float32.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_model(
    directory: Path, compute: ComputeSettings
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model directory of the pipeline for evaluation or pruning, with frozen weights.

    The directory is first verified against its record.

    Raises:
        DamagedArtifactError: a file has changed, or weights and configuration do not match.
    """
    record = read_round_record(directory)
    if record.digest != model_digest(directory):
        raise DamagedArtifactError(
            f"{directory} is damaged (its digest does not match its record): "
            f"delete it and run `dvc repro`"
        )
    return load_unrecorded(directory, compute), load_tokenizer(directory)


def load_unrecorded(directory: Path, compute: ComputeSettings) -> PreTrainedModel:
    """Load the model of a directory of either layout that has no record yet.

    No code in the directory is executed.

    Raises:
        DamagedArtifactError: weights and configuration do not match.
    """
    dtype: torch.dtype = getattr(torch, resolve_dtype(compute, directory))
    model: Any
    if is_per_layer(directory):
        model = load_per_layer(directory, dtype)
    else:
        read: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_keys` names them
        )
        model, info = read
        _check_keys(info, str(directory))
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return place_by_settings(loaded, compute, resolve_device(compute))


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory."""
    # The model's configuration, which AutoTokenizer would read, is custom code in per_layer.
    known: dict[str, Any] = {"config": PreTrainedConfig()} if is_per_layer(directory) else {}
    return AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, **known
    )


def context_length(directory: Path) -> int | None:
    """Maximum sequence length of a plain model directory, in tokens."""
    return getattr(AutoConfig.from_pretrained(directory), "max_position_embeddings", None)


def load_source(settings: ModelSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the dense model from `model.source` in `model.dtype`; GGUF files are dequantised.

    A directory of layout `per_layer` can be pruned further. No code of the source is executed.

    Raises:
        InputError: the source does not exist, cannot be read or is not supported, or its weights
            are quantised or contain NaN or infinity (the tensor is named).
    """
    location, gguf = check_source(settings)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    common: dict[str, Any] = {"trust_remote_code": False}
    if settings.revision:
        common["revision"] = settings.revision
    if gguf is not None:
        common["gguf_file"] = gguf
    elif Path(location).is_dir():
        _check_stored_types(Path(location))
        if is_per_layer(Path(location)):
            pruned = load_per_layer(Path(location), dtype)
            check_weights(pruned)
            return pruned, load_tokenizer(Path(location))
    try:
        extra: dict[str, Any] = {}
        if gguf is None:  # parsing a GGUF header takes as long as loading its small model
            config = AutoConfig.from_pretrained(location, **common)
            family_of(config.model_type)
            check_unquantised(getattr(config, "quantization_config", None), settings.source)
            if "flash" in str(getattr(config, "_attn_implementation", None)):
                config._attn_implementation = "sdpa"  # how a model computes is not its content
            extra["config"] = config
        else:
            extra["quantization_config"] = GgufConfig(dequantize=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            use_safetensors=None if gguf else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `_check_keys` names them
            **extra,
            **common,
        )
        model, info = loaded
        _check_keys(info, settings.source)
        tokenizer = AutoTokenizer.from_pretrained(location, **common)
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:300]
        raise InputError(
            f"model.source: {settings.source} cannot be loaded ({detail}): give a model of a "
            f"supported family ({', '.join(sorted(FAMILIES))})"
        ) from None
    family_of(model.config.model_type)
    check_weights(model)
    return _plain(model, dtype), tokenizer


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """A causal language model of this configuration with uninitialised weights."""
    with no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()  # usually part of the skipped initialisation
    return model


def cast_parameters(model: Any, dtype: torch.dtype) -> Any:
    """Cast the weights but not the buffers: rotary frequencies stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _plain(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights in a new model whose configuration has no quantisation and no code."""
    record_tying(model)
    values = model.config.to_dict()
    for key in ("quantization_config", "auto_map", "_model_name_or_path", "_name_or_path"):
        values.pop(key, None)
    values["dtype"] = str(dtype).removeprefix("torch.")
    fresh = empty_model(type(model.config).from_dict(values), dtype)
    fresh.load_state_dict({name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    fresh.generation_config = model.generation_config
    return fresh.eval().requires_grad_(False)


def _check_keys(info: dict[str, Any], where: str) -> None:
    for name, stored, configured in sorted(info.get("mismatched_keys") or ()):
        raise DamagedArtifactError(
            f"{where}: tensor {name} is {list(stored)} in its weights and {list(configured)} by "
            "config.json: give weights and config.json of the same model"
        )
    for kind in ("missing_keys", "unexpected_keys"):
        if info.get(kind):
            first = sorted(str(key) for key in info[kind])[0]
            raise DamagedArtifactError(
                f"{where}: its weights have {kind.replace('_', ' ')}, e.g. {first}: give weights "
                "and config.json of the same model"
            )


def check_weights(model: PreTrainedModel) -> None:
    """Check that all weights are finite and in a supported data type.

    Raises:
        InputError: names a tensor with NaN, infinity or another data type.
    """
    for name, tensor in model.named_parameters():
        if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            raise InputError(
                f"tensor {name} has data type {str(tensor.dtype).removeprefix('torch.')}: load the "
                "model in bfloat16 or float32"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"tensor {name} contains NaN or infinity: give another model")


def _check_stored_types(directory: Path) -> None:
    """Check from the file headers that weights are not stored as integers or in eight bits."""
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            return  # not a safetensors file: loading it reports that
        for name, dtype in types.items():
            # Old checkpoints also have masks, stored as bytes, which are not loaded.
            if name.endswith("weight") and dtype not in STORED_TYPES:
                raise InputError(
                    f"model.source: tensor {name} of {path} is stored as {dtype}; supported are "
                    f"{', '.join(STORED_TYPES)}: give the model before quantisation"
                )
