"""Where each model family keeps its prunable units, and what removing one of them takes.

A *consumer* is the linear layer whose input channels are pruned; its *producers* make those
channels. MLP: neuron j is row j of every producer and column j of the consumer. Attention: KV
group g is its rows of the key and value projections, the rows of its query heads, and those
heads' columns of the output projection. A new family is one entry of `FAMILIES`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruneflow.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """Module names of one family, relative to the model and to one of its layers."""

    model_type: str
    layers: str = "model.layers"
    mlp_producers: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_consumer: str = "mlp.down_proj"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    attention_consumer: str = "self_attn.o_proj"


FAMILIES = {
    family.model_type: family
    for family in (Family("llama"), Family("mistral"), Family("qwen2"), Family("qwen3"))
}


@dataclass(frozen=True)
class Layer:
    """One transformer block: its module and the linear layers that pruning touches."""

    index: int
    module: "nn.Module"
    family: Family
    head_dim: int
    heads_per_group: int

    def linear(self, name: str) -> Any:
        """The linear layer called `name` in the family's description."""
        return self.module.get_submodule(name)

    @property
    def mlp_consumer(self) -> Any:
        """The linear layer that reads the neurons."""
        return self.linear(self.family.mlp_consumer)

    @property
    def attention_consumer(self) -> Any:
        """The linear layer that reads the heads."""
        return self.linear(self.family.attention_consumer)

    @property
    def neurons(self) -> int:
        """Number of MLP neurons now."""
        return int(self.mlp_consumer.in_features)

    @property
    def group_columns(self) -> int:
        """Columns of the attention consumer that belong to one KV group."""
        return self.heads_per_group * self.head_dim

    @property
    def kv_groups(self) -> int:
        """Number of KV groups now."""
        return int(self.attention_consumer.in_features) // self.group_columns

    @property
    def neuron_weights(self) -> int:
        """Weights that removing one neuron removes (3 d for a gated MLP)."""
        producers = sum(self.linear(name).in_features for name in self.family.mlp_producers)
        return int(producers + self.mlp_consumer.out_features)

    @property
    def group_weights(self) -> int:
        """Weights that removing one KV group removes: (2 r + 2) head_dim d."""
        query, key, value = (
            self.linear(name).in_features
            for name in (self.family.query, self.family.key, self.family.value)
        )
        per_head_column = self.heads_per_group * (query + self.attention_consumer.out_features)
        return int(self.head_dim * (per_head_column + key + value))


def family_of(config: "PreTrainedConfig") -> Family:
    """The description of a model's family.

    Raises:
        InputError: the family is not supported; the message names those that are.
    """
    model_type = str(getattr(config, "model_type", None) or "unknown")
    if model_type not in FAMILIES:
        raise InputError(
            f"models of type {model_type} are not supported; supported are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def layers_of(model: "PreTrainedModel") -> list[Layer]:
    """The blocks of a model, first to last, with the shapes they have now."""
    family = family_of(model.config)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    heads_per_group = config.num_attention_heads // config.num_key_value_heads
    blocks: Any = model.get_submodule(family.layers)
    return [
        Layer(index, module, family, int(head_dim), int(heads_per_group))
        for index, module in enumerate(blocks)
    ]


def block_weights(model: "PreTrainedModel") -> int:
    """Weights in the matrices of all transformer blocks; embeddings, head, norms and biases apart.

    Every *ratio* in this project is a share of this number of the dense model.
    """
    return sum(
        parameter.numel()
        for layer in layers_of(model)
        for parameter in layer.module.parameters()
        if parameter.dim() == 2
    )


def sizes_of(model: "PreTrainedModel") -> dict[str, Any]:
    """What records say of a model's size: parameters, block weights, widths of every layer."""
    layers = layers_of(model)
    return {
        "parameters": parameters(model),
        "block_weights": block_weights(model),
        "widths": {
            "neurons": [layer.neurons for layer in layers],
            "kv_groups": [layer.kv_groups for layer in layers],
        },
    }


def parameters(model: "PreTrainedModel") -> int:
    """All parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def allowed_kv_groups(config: "PreTrainedConfig") -> list[int]:
    """KV group counts, up to the present one, that the family's own configuration accepts.

    Some configurations (Llama's) refuse a head count that does not divide the hidden size.
    """
    ratio = config.num_attention_heads // config.num_key_value_heads
    allowed = []
    for groups in range(1, config.num_key_value_heads + 1):
        try:
            resized_config(config, groups=groups, heads_per_group=ratio)
        except Exception as error:  # noqa: BLE001 - each family refuses with a type of its own
            if groups == config.num_key_value_heads:
                raise InputError(f"the model's own configuration is refused: {error}") from None
            continue
        allowed.append(groups)
    return allowed


def resized_config(
    config: "PreTrainedConfig",
    *,
    neurons: int | None = None,
    groups: int | None = None,
    heads_per_group: int | None = None,
) -> "PreTrainedConfig":
    """A copy of `config` with new uniform widths, and `head_dim` written out."""
    values = config.to_dict()
    values["head_dim"] = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    if neurons is not None:
        values["intermediate_size"] = neurons
    if groups is not None:
        ratio = heads_per_group or config.num_attention_heads // config.num_key_value_heads
        values["num_key_value_heads"] = groups
        values["num_attention_heads"] = groups * ratio
    return type(config).from_dict(values)
