"""Layout `per_layer` on disk: layers of different widths, and a small model file to build them.

``config.json`` has the dense widths, those of each layer in ``per_layer_config`` (the schema of
transformers), and its own model type, so that plain transformers asks for ``trust_remote_code``
instead of building wrong widths. pruneflow loads the directory without executing its file.
"""

import json
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from pruneflow.artifacts import read_json
from pruneflow.errors import DamagedArtifactError
from pruneflow.models.families import PRUNED, LayerWidths, configured_widths, family_of
from pruneflow.models.structure import Layer, layers_of, matrix, widths_of
from pruneflow.models.surgery import cut_heads, cut_neurons, head_attributes
from pruneflow.templating import templates

TEMPLATE = "per_layer_model.py.jinja"


def is_per_layer(directory: Path) -> bool:
    """Whether a model directory has this layout."""
    return str(read_json(directory / "config.json").get("model_type")).startswith(PRUNED)


def convert_to_per_layer(model: PreTrainedModel, directory: Path) -> None:
    """Convert a directory written by `save_pretrained` for a pruned model to this layout.

    The model's configuration has the dense widths.
    """
    layers = layers_of(model)
    family = layers[0].family
    base_config = CONFIG_MAPPING[family.model_type]
    base: Any = MODEL_FOR_CAUSAL_LM_MAPPING[base_config]
    names = {"base_config": base_config.__name__, "base": base.__name__}
    module = f"modeling_{PRUNED}{family.model_type}"
    values = read_json(directory / "config.json")
    if family.groups_field is not None:
        values["head_dim"] = layers[0].head_dim  # else derived from the number of heads
    values["model_type"] = PRUNED + family.model_type
    values["architectures"] = [f"Pruned{base.__name__}"]
    values["auto_map"] = {
        "AutoConfig": f"{module}.Pruned{base_config.__name__}",
        "AutoModelForCausalLM": f"{module}.Pruned{base.__name__}",
    }
    digits = len(str(len(layers) - 1))
    values["per_layer_config"] = {
        str(layer.index).zfill(digits): _overrides(layer) for layer in layers
    }
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    own_rope_check = "validate_rope" in vars(base_config)
    source = _model_file(layers[0], own_rope_check=own_rope_check, **names)
    (directory / f"{module}.py").write_text(source, encoding="utf-8")


def save_in_layout(model: PreTrainedModel) -> None:
    """Let `model.save_pretrained` write this layout.

    The class is the family's own, whose `save_pretrained` would write the dense widths next to the
    pruned weights, which nothing loads.
    """
    vars(model)["save_pretrained"] = MethodType(_save_pretrained, model)


def _save_pretrained(model: PreTrainedModel, save_directory: str | Path, **options: Any) -> None:
    # transformers renames some tensors when saving (the head of GPT-NeoX) and restores the names
    # only for its own classes, so a directory with a model file keeps the model's names.
    options["save_original_format"] = False
    type(model).save_pretrained(model, save_directory, **options)
    if options.get("is_main_process", True):
        convert_to_per_layer(model, Path(save_directory))


def load_per_layer(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a directory of this layout as the family's plain class with pruned layers, on the CPU.

    No code in the directory is executed.

    Raises:
        DamagedArtifactError: widths, names or shapes do not match.
    """
    values = read_json(directory / "config.json")
    overrides = values.pop("per_layer_config", None)
    if not isinstance(overrides, dict):
        raise DamagedArtifactError(
            f"{directory}/config.json has no per_layer_config: delete {directory} and run again"
        )
    for key in ("auto_map", "architectures"):
        values.pop(key, None)
    values["model_type"] = family_of(values["model_type"]).model_type
    config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    with init_empty_weights(include_buffers=False), no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    by_index = {int(index): fields for index, fields in overrides.items()}
    for layer in layers_of(model):
        _resize(layer, by_index.get(layer.index, {}), configured_widths(config), directory)
    _load_weights(model, directory, dtype)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    save_in_layout(model)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def _overrides(layer: Layer) -> dict[str, int]:
    """A layer's widths by configuration field."""
    family, widths = layer.family, widths_of(layer)
    fields = {family.neurons_field: widths.neurons, family.heads_field: widths.heads}
    if family.groups_field is not None:
        fields[family.groups_field] = widths.kv_groups
    return fields


def _resize(layer: Layer, fields: dict[str, int], dense: LayerWidths, directory: Path) -> None:
    """Cut a dense layer without weights to the widths in its configuration fields."""
    family = layer.family
    heads = fields.get(family.heads_field, dense.heads)
    widths = LayerWidths(
        fields.get(family.neurons_field, dense.neurons),
        fields.get(family.groups_field, dense.kv_groups) if family.groups_field else heads,
        heads,
    )
    ratio = dense.heads // dense.kv_groups
    fits = all(isinstance(n, int) and 1 <= n <= most for n, most in zip(widths, dense, strict=True))
    if not fits or widths.heads % widths.kv_groups or widths.heads // widths.kv_groups > ratio:
        raise DamagedArtifactError(
            f"{directory}/config.json: layer {layer.index} cannot have {widths._asdict()}, because "
            f"the dense model has {dense._asdict()}: delete {directory} and run again"
        )
    if widths.neurons < dense.neurons:
        cut_neurons(layer, torch.arange(widths.neurons))
    if widths[1:] != dense[1:]:
        heads_by_group = torch.arange(dense.heads).view(dense.kv_groups, ratio)
        kept_ratio = widths.heads // widths.kv_groups
        cut_heads(layer, heads_by_group[: widths.kv_groups, :kept_ratio])


def _load_weights(model: Any, directory: Path, dtype: torch.dtype) -> None:
    """Load the weights into a model on the meta device; all names and shapes must match."""
    expected = dict(model.state_dict())
    tensors: dict[str, torch.Tensor] = {}
    try:
        for path in sorted(directory.glob("*.safetensors")):
            tensors |= {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise DamagedArtifactError(
            f"{directory}: its weights cannot be read ({error}): delete it and run again"
        ) from None
    for name, tensor in tensors.items():
        if name not in expected or tensor.shape != expected[name].shape:
            raise DamagedArtifactError(
                f"{directory}: {name} {list(tensor.shape)} does not match config.json: delete it "
                "and run again"
            )
    missing = sorted(expected.keys() - tensors.keys() - model.all_tied_weights_keys.keys())
    if missing:
        raise DamagedArtifactError(
            f"{directory}: {missing[0]} is missing from its weights: delete it and run again"
        )
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()


def _model_file(layer: Layer, **names: Any) -> str:
    """The model file, which builds such a model with plain transformers."""
    family = layer.family
    linears = []
    for name in family.mlp_producers:
        times = matrix(layer.linear(name)).shape[0] // layer.neurons  # 2 if gate and up are fused
        linears.append((name, f"outputs={times} * neurons" if times > 1 else "outputs=neurons"))
    linears.append((family.mlp_consumer, "inputs=neurons"))
    separate = len(family.attention_producers) == 3
    outputs = ("heads", "groups", "groups") if separate else ("(heads + 2 * groups)",)
    for name, units in zip(family.attention_producers, outputs, strict=True):
        linears.append((name, f"outputs={units} * head_dim"))
    linears.append((family.attention_consumer, "inputs=heads * head_dim"))
    sources = {
        "num_heads": "heads",
        "num_key_value_heads": "groups",
        "num_key_value_groups": "heads // groups",
        "split_size": "heads * head_dim",
    }
    return (
        templates(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            model_type=PRUNED + family.model_type,
            layers=family.layers,
            neurons_field=family.neurons_field,
            heads_field=family.heads_field,
            groups_field=family.groups_field,
            reads_config=family.reads_config,
            attention=family.attention_consumer.rpartition(".")[0],
            head_dim="head_dim" if hasattr(layer.attention, "head_dim") else "head_size",
            linears=linears,
            attributes=[(name, sources[name]) for name in head_attributes(layer)],
            conv1d=not hasattr(layer.mlp_consumer, "out_features"),
            **names,
        )
    )
