"""Settings of pruning: target size, score, layout and refit."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from pruneflow.settings.base import Count, Settings, Share

Unit = Literal["neurons", "heads", "kv_groups"]
ScoreName = Literal[
    "mask_fisher",
    "first_order",
    "weight_gradient",
    "wanda_sp",
    "flap",
    "obs",
    "magnitude",
    "random",
]
"""Names of the score functions in pruneflow/pruning/scores.py."""


class Target(Settings):
    """Target size of a model, in exactly one of three units."""

    ratio: Share | None = Field(
        None, description="Share of the dense model's block weights that is removed."
    )
    parameters: Count | None = Field(None, description="Parameters kept, embeddings included.")
    bytes: Count | None = Field(None, description="Bytes of weights kept, in model.dtype.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self._given()) != 1:
            raise ValueError("give exactly one of ratio, parameters and bytes")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: Any) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    def _given(self) -> dict[str, float]:
        return self.model_dump(include={"ratio", "parameters", "bytes"})

    def is_below(self, other: Self) -> bool:
        """Whether this target keeps less than another one in the same unit."""
        ((kind, value),) = self._given().items()
        other_value = other._given().get(kind)
        if other_value is None:
            return False
        return value > other_value if kind == "ratio" else value < other_value

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"ratio {self.ratio:g}"
        ((kind, value),) = self._given().items()
        return f"{value:,} {kind}"


class PruningSettings(Settings):
    """How one round selects units, removes them and refits the remaining weights."""

    score: ScoreName = Field(
        "mask_fisher", description="Importance score of a unit; see pruneflow/pruning/scores.py."
    )
    also_score: list[ScoreName] = Field(
        default=["first_order", "wanda_sp", "flap", "magnitude"],
        description="Other scores to record for comparison; these need no extra passes.",
    )
    fisher_labels: Literal["sampled", "text"] = Field(
        "sampled",
        description="Labels of the Fisher information: next tokens `sampled` from the model, or "
        "those of the `text` (empirical Fisher).",
    )
    fisher_draws: Count = Field(
        1, description="Samples of next tokens per sequence; each takes a backward pass."
    )
    layout: Literal["uniform", "per_layer"] = Field(
        "uniform",
        description="`uniform`: all layers have the same widths; loads everywhere. `per_layer`: "
        "every layer has its own widths; better quality, requires trust_remote_code.",
    )
    units: list[Unit] = Field(
        default=["neurons", "heads", "kv_groups"],
        min_length=1,
        description="Kinds of units to prune.",
    )
    neuron_multiple: Count = Field(
        32, description="MLP widths stay multiples of this (64 or 128 suit GPUs)."
    )
    min_neuron_share: Share = Field(0.1, description="Minimum share of a layer's neurons to keep.")
    protect_layers: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], description="Layers to leave unpruned, counted from 0; layout per_layer only."
    )
    refit: Literal["least_squares", "none"] = Field(
        "least_squares", description="How the remaining weights of a pruned layer are refitted."
    )
    towards_dense: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Target of the refit: 1 is the output of the unpruned model, 0 the output for "
        "the activations of the preceding pruned layers.",
    )
    ridge: float = Field(
        0.01, gt=0, description="Ridge of the refit, as a share of the mean diagonal of H."
    )
    domain_feedback: float = Field(
        0.0,
        ge=0,
        description="Strength (eta) of the closed loop, which gives domains with above-average "
        "loss more weight in the next round's score and more sequences from calibration.reserve; "
        "0 disables it.",
    )
    seed: int = Field(0, ge=0, description="Seed for sampled labels and the random score.")

    @model_validator(mode="after")
    def _no_unused_setting(self) -> Self:
        if self.layout == "uniform" and self.protect_layers:
            raise ValueError(
                "protect_layers needs layout per_layer: in uniform all layers have the same widths"
            )
        if self.refit == "none" and self.towards_dense != 0:
            raise ValueError("towards_dense is not used with refit none: set it to 0")
        return self
