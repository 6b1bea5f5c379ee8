"""The model families: names of their modules and fields, and the widths they can be exported in.

A new family is one entry of `FAMILIES`.

Some configurations refuse a head count that does not divide the hidden size (Llama's, Gemma's).
A Llama without biases is, tensor for tensor, a Mistral without a sliding window: it is exported
as its twin where its own configuration refuses.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import MistralConfig, PreTrainedConfig

from pruneflow.errors import InputError

PRUNED = "pruned_"  # before the model type of a directory whose layers differ in width


@dataclass(frozen=True)
class Family:
    """Names of one family's modules and configuration fields.

    Attributes:
        model_type: what its ``config.json`` says.
        layers: the list of blocks, from the model.
        mlp_producers: linears that make the neurons, from a block. Where one linear makes gate and
            up projection, its rows are all gates and then all ups.
        mlp_consumer: linear that reads the neurons.
        attention_producers: query, key and value projection, or the one linear that makes all.
        interleaved: rows of that one linear are query, key, value of head 0, then of head 1;
            otherwise all queries, all keys, all values.
        attention_consumer: linear that reads the heads.
        neurons_field: the configuration's number of neurons.
        heads_field: its number of query heads.
        groups_field: its number of KV groups. None: every head has its own keys and values, and
            the head size follows from the head count, so that no configuration holds fewer heads.
        reads_config: the attention module asks its configuration for head counts as it runs.
        adds_plainly: a consumer's output is added to the hidden states as it is, not normalised.
    """

    model_type: str
    layers: str = "model.layers"
    mlp_producers: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_consumer: str = "mlp.down_proj"
    attention_producers: tuple[str, ...] = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    )
    interleaved: bool = False
    attention_consumer: str = "self_attn.o_proj"
    neurons_field: str = "intermediate_size"
    heads_field: str = "num_attention_heads"
    groups_field: str | None = "num_key_value_heads"
    reads_config: bool = False
    adds_plainly: bool = True


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama"),
        Family("mistral"),
        Family("qwen2"),
        Family("qwen3"),
        Family("gemma2", adds_plainly=False),
        Family("gemma3_text", adds_plainly=False),
        Family(
            "phi3",
            mlp_producers=("mlp.gate_up_proj",),
            attention_producers=("self_attn.qkv_proj",),
            reads_config=True,
        ),
        Family(
            "opt",
            layers="model.decoder.layers",
            mlp_producers=("fc1",),
            mlp_consumer="fc2",
            attention_consumer="self_attn.out_proj",
            neurons_field="ffn_dim",
            groups_field=None,
        ),
        Family(
            "gpt2",
            layers="transformer.h",
            mlp_producers=("mlp.c_fc",),
            mlp_consumer="mlp.c_proj",
            attention_producers=("attn.c_attn",),
            attention_consumer="attn.c_proj",
            neurons_field="n_inner",
            heads_field="n_head",
            groups_field=None,
        ),
        Family(
            "gpt_neox",
            layers="gpt_neox.layers",
            mlp_producers=("mlp.dense_h_to_4h",),
            mlp_consumer="mlp.dense_4h_to_h",
            attention_producers=("attention.query_key_value",),
            interleaved=True,
            attention_consumer="attention.dense",
            groups_field=None,
        ),
    )
}


@dataclass(frozen=True)
class ModelType:
    """Just enough of a configuration to look up its family."""

    model_type: str | None


def family_of(config: PreTrainedConfig | ModelType) -> Family:
    """The description of a model's family, from a configuration of either layout.

    Raises:
        InputError: the family is not supported; the message names those that are.
    """
    model_type = str(getattr(config, "model_type", None) or "unknown")
    family = FAMILIES.get(model_type.removeprefix(PRUNED))
    if family is None:
        raise InputError(
            f"models of type {model_type} are not supported; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return family


class LayerWidths(NamedTuple):
    """Units of one layer."""

    neurons: int
    kv_groups: int
    heads: int


def configured_widths(config: PreTrainedConfig) -> LayerWidths:
    """The widths that a configuration gives every layer."""
    family = family_of(config)
    heads = int(getattr(config, family.heads_field))
    groups = int(getattr(config, family.groups_field)) if family.groups_field else heads
    # GPT-2 leaves the field empty for four times its hidden size.
    neurons = getattr(config, family.neurons_field) or 4 * config.hidden_size
    return LayerWidths(int(neurons), groups, heads)


def uniform_config(config: PreTrainedConfig, widths: LayerWidths) -> PreTrainedConfig | None:
    """A configuration that gives every layer these widths, the head size staying as it is.

    Returns:
        One of the family's own, or of its twin, or None where neither can describe such layers.
    """
    family = family_of(config)
    present = configured_widths(config)
    if family.groups_field is None and widths[1:] != present[1:]:
        return None  # the head size would change with the head count
    values = config.to_dict()
    values[family.neurons_field] = widths.neurons
    values[family.heads_field] = widths.heads
    if family.groups_field is not None:
        values[family.groups_field] = widths.kv_groups
        values["head_dim"] = (
            getattr(config, "head_dim", None) or config.hidden_size // present.heads
        )
    resized = _accepted(type(config), values)
    if resized is None and (twin := _twin(values)) is not None:
        resized = _accepted(*twin)
    return resized


def allowed_attention(config: PreTrainedConfig) -> set[tuple[int, int]]:
    """Pairs (KV groups, heads per group), none above the present, that can be exported `uniform`.

    Raises:
        InputError: the configuration refuses even what it has.
    """
    present = configured_widths(config)
    ratio = present.heads // present.kv_groups
    allowed = {
        (groups, heads)
        for groups in range(1, present.kv_groups + 1)
        for heads in range(1, ratio + 1)
        if uniform_config(config, LayerWidths(present.neurons, groups, groups * heads)) is not None
    }
    if (present.kv_groups, ratio) not in allowed:
        raise InputError(
            f"the model's own configuration is refused: {config.model_type} does not accept its "
            f"{present.heads} heads in {present.kv_groups} KV groups"
        )
    return allowed


def _accepted(kind: type, values: dict[str, Any]) -> PreTrainedConfig | None:
    try:
        config: PreTrainedConfig = kind.from_dict(dict(values))  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - each family refuses with a type of its own
        return None
    return config


def _twin(values: dict[str, Any]) -> tuple[type, dict[str, Any]] | None:
    """The configuration class that takes the same tensors with any head count, and its values."""
    if values["model_type"] != "llama" or values["attention_bias"] or values["mlp_bias"]:
        return None

    foreign = ("model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp")
    kept = {key: value for key, value in values.items() if key not in foreign}
    return MistralConfig, {**kept, "sliding_window": None}
