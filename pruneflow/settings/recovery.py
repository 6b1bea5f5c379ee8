"""The settings of recovery."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pruneflow.settings.base import Count, Settings

ShareWithEnds = Annotated[float, Field(ge=0, le=1)]


class RecoverySettings(Settings):
    """How the dense parent is distilled into the pruned model."""

    token_budget: int = Field(
        0, ge=0, description="Training tokens, repeated ones counted again; 0 leaves recovery out."
    )
    sequence_length: int = Field(
        256, ge=8, description="Tokens in a training sequence that the pipeline packs."
    )
    method: Literal["full", "lora"] = Field(
        "full",
        description="`full` trains the weights (16 bytes each); `lora` trains low-rank adapters "
        "of the blocks' linear layers, merged at the end.",
    )
    lora_rank: Count = Field(16, description="Rank of the adapters.")
    lora_alpha: Count = Field(32, description="An adapter is scaled by alpha over rank.")
    freeze_embeddings: bool = Field(
        True,
        description="Whether token and position embeddings and the output head stay as they are.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Whether blocks are run a second time in the backward pass, to save memory.",
    )
    batch_sequences: Count = Field(16, description="Sequences of all domains in one step.")
    learning_rate: float = Field(2e-4, gt=0, description="Peak rate; 2e-4 suits 135M weights.")
    warmup_share: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps in which the rate rises to its peak."
    )
    floor_share: ShareWithEnds = Field(
        0.1, description="The rate after the last step, as a share of the peak."
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's, on matrices alone.")
    max_grad_norm: float = Field(1.0, gt=0, description="Longer gradients are scaled down to this.")
    temperature: float = Field(1.0, gt=0, description="Divides both models' logits.")
    hard_label_share: ShareWithEnds = Field(
        0.0, description="Weight of the text's own next token; the parent's view has the rest."
    )
    evaluate_every: Count = Field(50, description="Steps between looks at the held-out loss.")
    patience: int = Field(
        5, ge=0, description="Looks without a better held-out loss before it ends; 0: no end."
    )
    checkpoint_every: Count = Field(100, description="Steps between checkpoints.")
    seed: int = Field(0, ge=0, description="Order of the sequences, and first adapters.")

    @model_validator(mode="after")
    def _no_idle_setting(self) -> Self:
        if self.method == "lora" and not self.freeze_embeddings:
            raise ValueError(
                "freeze_embeddings is false, but method lora trains adapters of the blocks alone: "
                "set it to true, or method to full"
            )
        return self
