"""The settings of pruning: how small, by which score, in which layout, with which refit."""

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
"""Names of the functions in pruneflow/pruning/scores.py, which registers no other."""


class Target(Settings):
    """How small a model is to become, said in exactly one way."""

    ratio: Share | None = Field(
        None, description="Share of the dense model's block weights that is gone."
    )
    parameters: Count | None = Field(None, description="Parameters left, embeddings included.")
    bytes: Count | None = Field(None, description="Bytes of weights left, in model.dtype.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self._given()) != 1:
            raise ValueError("give exactly one of ratio, parameters and bytes")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: Any) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    def _given(self) -> dict[str, float]:
        values = {"ratio": self.ratio, "parameters": self.parameters, "bytes": self.bytes}
        return {key: value for key, value in values.items() if value is not None}

    def is_below(self, other: Self) -> bool:
        """Whether this target leaves less than another one of the same kind."""
        (kind, value), (other_kind, other_value) = *self._given().items(), *other._given().items()
        if kind != other_kind:
            return False
        return value > other_value if kind == "ratio" else value < other_value

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"ratio {self.ratio:g}"
        return ", ".join(f"{value:,} {kind}" for kind, value in self._given().items())


class PruningSettings(Settings):
    """How one round chooses units, removes them and refits what is left."""

    score: ScoreName = Field(
        "mask_fisher", description="How important a unit is; see pruneflow/pruning/scores.py."
    )
    also_score: list[ScoreName] = Field(
        default=["first_order", "wanda_sp", "flap", "magnitude"],
        description="Scores kept beside it for comparison; these cost no pass of their own.",
    )
    fisher_labels: Literal["sampled", "text"] = Field(
        "sampled",
        description="Next tokens whose loss is differentiated: drawn from the model's own "
        "distribution (the Fisher information) or the text's (the empirical one).",
    )
    fisher_draws: Count = Field(
        1, description="Draws of next tokens for each sequence, a backward pass each."
    )
    layout: Literal["uniform", "per_layer"] = Field(
        "uniform",
        description="`uniform`: all layers equally wide, loads everywhere. `per_layer`: each as "
        "wide as it must be, better, needs trust_remote_code.",
    )
    units: list[Unit] = Field(
        default=["neurons", "heads", "kv_groups"],
        min_length=1,
        description="Kinds of units that may go.",
    )
    neuron_multiple: Count = Field(
        32, description="MLP widths stay multiples of this (64 or 128 suit GPUs)."
    )
    min_neuron_share: Share = Field(0.1, description="Share of a layer's neurons always kept.")
    protect_layers: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], description="Layers that are not pruned, from 0; layout per_layer only."
    )
    refit: Literal["least_squares", "none"] = Field(
        "least_squares", description="What the kept columns of a consumer become."
    )
    towards_dense: float = Field(
        0.3,
        ge=0,
        le=1,
        description="How much of the gap to the unpruned model's activations the refit closes; 0 "
        "keeps to what the pruned layers before give.",
    )
    ridge: float = Field(
        0.01, gt=0, description="Ridge of the refit, as a share of the mean diagonal of H."
    )
    domain_feedback: float = Field(
        0.0,
        ge=0,
        description="How strongly domains that lost more than the mean weigh in the next round: in "
        "its score, and in how many of their sequences are drawn from calibration.reserve (eta of "
        "the closed loop); 0 switches it off.",
    )
    seed: int = Field(0, ge=0, description="Of drawn labels and of the random score.")

    @model_validator(mode="after")
    def _no_idle_setting(self) -> Self:
        if self.layout == "uniform" and self.protect_layers:
            raise ValueError(
                "protect_layers needs layout per_layer: in uniform all layers have the same widths"
            )
        if self.refit == "none" and self.towards_dense != 0:
            raise ValueError("towards_dense is not used with refit none: set it to 0")
        return self
