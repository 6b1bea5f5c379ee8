"""Supported model families: names of modules and fields, and the widths they can be exported in.

A new family is one entry of `FAMILIES`.

Some configurations reject a head count that does not divide the hidden size (Llama, Gemma). A Llama
without biases is equivalent to a Mistral without a sliding window, tensor for tensor, and is
exported as one if its own configuration rejects the head count.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import MistralConfig, PreTrainedConfig

from pruneflow.errors import InputError

PRUNED = "pruned_"  # prefix of the model type in layout per_layer


@dataclass(frozen=True)
class Family:
    """Names of the modules and configuration fields of a family.

    Attributes:
        model_type: `model_type` in ``config.json``.
        layers: path of the list of blocks in the model.
        mlp_producers: linear layers that compute the neurons, relative to a block. In a fused gate
            and up projection, the rows of the gate come first.
        mlp_consumer: linear layer whose inputs are the neurons.
        attention_producers: query, key and value projection, or one fused projection.
        interleaved: whether the rows of the fused projection are ordered by head (query, key and
            value of head 0, then of head 1); otherwise all queries, all keys, all values.
        attention_consumer: linear layer whose inputs are the heads.
        neurons_field: configuration field of the number of neurons.
        heads_field: configuration field of the number of query heads.
        groups_field: configuration field of the number of KV groups. None: every head has its own
            key and value, and the head size depends on the head count, so no configuration has
            fewer heads of the same size.
        reads_config: whether the attention module reads head counts from its configuration in the
            forward pass.
        adds_plainly: whether a consumer's output is added to the hidden states without
            normalisation.
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


def family_of(model_type: str | None) -> Family:
    """The family of a `model_type` in ``config.json``, of either layout.

    Raises:
        InputError: the family is not supported; the message lists the supported ones.
    """
    name = str(model_type or "unknown")
    family = FAMILIES.get(name.removeprefix(PRUNED))
    if family is None:
        raise InputError(
            f"models of type {name} are not supported: use one of {', '.join(sorted(FAMILIES))}"
        )
    return family


class LayerWidths(NamedTuple):
    """Number of units of each kind in one layer."""

    neurons: int
    kv_groups: int
    heads: int


def configured_widths(config: PreTrainedConfig) -> LayerWidths:
    """The widths of all layers according to a configuration."""
    family = family_of(config.model_type)
    heads = int(getattr(config, family.heads_field))
    groups = int(getattr(config, family.groups_field)) if family.groups_field else heads
    # In GPT-2 an empty field means four times the hidden size.
    neurons = getattr(config, family.neurons_field) or 4 * config.hidden_size
    return LayerWidths(int(neurons), groups, heads)


def uniform_config(config: PreTrainedConfig, widths: LayerWidths) -> PreTrainedConfig | None:
    """A configuration with these widths in every layer and the same head size.

    Returns:
        A configuration of the family or its equivalent family; None if neither supports the widths.
    """
    family = family_of(config.model_type)
    current = configured_widths(config)
    if family.groups_field is None and widths[1:] != current[1:]:
        return None  # the head size would change with the head count
    values = config.to_dict()
    values[family.neurons_field] = widths.neurons
    values[family.heads_field] = widths.heads
    if family.groups_field is not None:
        values[family.groups_field] = widths.kv_groups
        values["head_dim"] = (
            getattr(config, "head_dim", None) or config.hidden_size // current.heads
        )
    resized = _build(type(config), values)
    if resized is None and (equivalent := _as_mistral(values)) is not None:
        resized = _build(MistralConfig, equivalent)
    return resized


def allowed_attention(config: PreTrainedConfig) -> set[tuple[int, int]]:
    """Pairs (KV groups, heads per group), up to the current ones, that layout `uniform` supports.

    Raises:
        InputError: the configuration rejects even the current head counts.
    """
    current = configured_widths(config)
    ratio = current.heads // current.kv_groups
    allowed = {
        (groups, heads)
        for groups in range(1, current.kv_groups + 1)
        for heads in range(1, ratio + 1)
        if uniform_config(config, LayerWidths(current.neurons, groups, groups * heads)) is not None
    }
    if (current.kv_groups, ratio) not in allowed:
        raise InputError(
            f"the model's own configuration is invalid: {config.model_type} does not accept its "
            f"{current.heads} heads in {current.kv_groups} KV groups: use layout per_layer"
        )
    return allowed


def _build(kind: type, values: dict[str, Any]) -> PreTrainedConfig | None:
    try:
        config: PreTrainedConfig = kind.from_dict(dict(values))  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - every family raises another type
        return None
    return config


def _as_mistral(values: dict[str, Any]) -> dict[str, Any] | None:
    """A Llama's configuration as an equivalent Mistral's, which accepts any head count."""
    if values["model_type"] != "llama" or values["attention_bias"] or values["mlp_bias"]:
        return None
    llama_only = ("model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp")
    shared = {key: value for key, value in values.items() if key not in llama_only}
    return {**shared, "sliding_window": None}
