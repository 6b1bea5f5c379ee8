"""Settings of recovery."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pruneflow.settings.base import Count, Settings

ShareWithEnds = Annotated[float, Field(ge=0, le=1)]


class RecoverySettings(Settings):
    """How the dense teacher is distilled into the pruned student."""

    token_budget: int = Field(
        0, ge=0, description="Training tokens over all epochs; 0 disables recovery."
    )
    sequence_length: int = Field(256, ge=8, description="Tokens in a training sequence.")
    method: Literal["full", "lora"] = Field(
        "full",
        description="`full` trains all weights (16 bytes of memory each); `lora` trains low-rank "
        "adapters of the blocks' linear layers and merges them at the end.",
    )
    lora_rank: Count = Field(16, description="Rank of the adapters.")
    lora_alpha: Count = Field(32, description="Scaling of the adapters: alpha / rank.")
    freeze_embeddings: bool = Field(
        True,
        description="Whether to freeze token embeddings, position embeddings and the output head.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Whether to recompute activations in the backward pass, to save memory.",
    )
    batch_sequences: Count = Field(16, description="Sequences per step, over all domains.")
    learning_rate: float = Field(
        2e-4, gt=0, description="Peak learning rate; 2e-4 suits 135M parameters."
    )
    warmup_share: float = Field(
        0.05, ge=0, lt=1, description="Share of steps for linear warmup of the learning rate."
    )
    floor_share: ShareWithEnds = Field(
        0.1, description="Final learning rate, as a share of the peak."
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay, of matrices only.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    temperature: float = Field(1.0, gt=0, description="Distillation temperature.")
    hard_label_share: ShareWithEnds = Field(
        0.0,
        description="Weight of the cross-entropy with the text's next token; the distillation loss "
        "has the rest.",
    )
    evaluate_every: Count = Field(50, description="Steps between evals of the held-out loss.")
    patience: int = Field(
        5,
        ge=0,
        description="Evals without improvement before training stops; 0 disables early stopping.",
    )
    checkpoint_every: Count = Field(100, description="Steps between checkpoints.")
    seed: int = Field(0, ge=0, description="Seed for the order of sequences and the adapters.")

    @model_validator(mode="after")
    def _no_unused_setting(self) -> Self:
        if self.method == "lora" and not self.freeze_embeddings:
            raise ValueError(
                "freeze_embeddings is false, but method lora trains adapters of the blocks only: "
                "set it to true, or method to full"
            )
        return self
