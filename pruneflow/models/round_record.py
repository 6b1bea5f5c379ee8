"""round.json: the record next to every model directory of the pipeline.

It says what the directory is (the dense model, or a round: done, unhealthy or skipped), which round
is delivered so far, and the digest that a reader checks.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from pruneflow import records
from pruneflow.records import DomainLoss, Record
from pruneflow.settings.pruning import Target

RECORD = "round.json"


class Widths(Record):
    """Units of every layer, first to last."""

    neurons: list[int] = Field(description="MLP neurons.")
    kv_groups: list[int] = Field(description="KV groups.")
    heads: list[int] = Field(description="Query heads.")


class Sizes(Record):
    """How large a model is."""

    parameters: int = Field(description="All parameters; tied ones count once.")
    block_weights: int = Field(description="Weights in the matrices of all transformer blocks.")
    widths: Widths = Field(description="Units of every layer.")


class DenseReference(Record):
    """The dense model that targets and floors refer to."""

    digest: str | None = Field(None, description="Its model digest; null in the library.")
    block_weights: int = Field(description="Weights in the matrices of its transformer blocks.")
    neurons: int = Field(description="MLP neurons of one of its layers.")


class Validation(Record):
    """Losses on the validation text."""

    dense: dict[str, DomainLoss] = Field(description="The dense model, by domain.")
    pruned: dict[str, DomainLoss] = Field(description="The pruned model, by domain.")


class DomainPair(Record):
    """One measure of both models, by domain."""

    dense: dict[str, float] = Field(description="The dense model, by domain.")
    pruned: dict[str, float] = Field(description="The pruned model, by domain.")


class Drift(Record):
    """How far the pruned model has moved from the dense one, on validation text."""

    kl: dict[str, float] = Field(description="KL(dense || pruned) in nats per token, by domain.")
    top1_agreement: dict[str, float] = Field(
        description="Share of tokens with the same most likely next token, by domain."
    )
    entropy: DomainPair = Field(description="Mean entropy of the next token in nats, by domain.")
    repetition: DomainPair = Field(description="seq-rep-4 of greedy text, by domain.")
    norms: list[float] = Field(
        description="For each layer the mean over tokens of log(pruned / dense) of the norms of "
        "the hidden states that leave it."
    )


class Repetition(Record):
    """Repetition of greedy text, mean over domains; null where it is not finite."""

    dense: float | None = Field(description="The dense model.")
    pruned: float | None = Field(description="The pruned model.")
    rise: float | None = Field(description="pruned - dense.")


class Health(Record):
    """A round's measures held against the limits; null where a measure is not finite."""

    healthy: bool = Field(description="Whether no limit is broken.")
    reasons: list[str] = Field(description="A sentence for each broken limit.")
    reason: str = Field(description="One sentence for the record, either way.")
    mean_ratio: float | None = Field(None, description="Geometric mean of perplexity ratios.")
    worst_domain: str | None = Field(None, description="Domain with the highest ratio.")
    worst_ratio: float | None = Field(None, description="Its perplexity ratio.")
    kl: float | None = Field(None, description="Nats per token, mean over domains.")
    top1_agreement: float | None = Field(None, description="Mean over domains.")
    repetition: Repetition | None = Field(None, description="Repetition of greedy text.")
    entropy_drift: float | None = Field(None, description="Nats, pruned - dense.")
    norm_drift: float | None = Field(None, description="Largest absolute log ratio of norms.")
    norm_layer: int | None = Field(None, description="The layer that has it.")


class RecoveryEval(Record):
    """One evaluation on held-out text during recovery."""

    step: int = Field(description="Steps done.")
    train_loss: float | None = Field(description="Mean since the last eval; null at step 0.")
    validation_loss: float = Field(description="KL in nats per token, mean over domains.")
    validation_by_domain: dict[str, float] = Field(description="The same by domain.")


class Recovery(Record):
    """How the pruned model was trained after the last round."""

    steps: int = Field(description="Steps done.")
    tokens: int = Field(description="Tokens trained on; repeated ones count again.")
    best_step: int = Field(description="The step with the lowest held-out loss; its weights stay.")
    stopped_early: bool = Field(description="Whether the held-out loss ended the run.")
    history: list[RecoveryEval] = Field(description="Every evaluation, in order.")


class RoundRecord(Record):
    """The content of round.json."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    round: str = Field(description="Name of the round; `dense` for the dense model.")
    status: Literal["done", "unhealthy", "skipped"] = Field(
        description="`unhealthy`: a health limit is broken; `skipped`: the schedule ended before."
    )
    reason: str | None = Field(None, description="Why it is not done.")
    digest: str | None = Field(None, description="Model digest; null for a skipped round.")
    delivered: str = Field(description="The round that is delivered so far.")
    delivered_digest: str | None = Field(None, description="Its model digest.")
    dense: DenseReference = Field(description="The dense model.")
    source: str | None = Field(None, description="Of the dense model: model.source.")
    revision: str | None = Field(None, description="Of the dense model: model.revision.")
    parent: str | None = Field(None, description="The round that this one started from.")
    parent_digest: str | None = Field(None, description="Its model digest.")
    target: Target | None = Field(None, description="What the round was to reach.")
    achieved_ratio: float | None = Field(
        None, description="Share of the dense model's block weights that is removed."
    )
    parameters: int | None = Field(None, description="All parameters; tied ones count once.")
    block_weights: int | None = Field(
        None, description="Weights in the matrices of all transformer blocks."
    )
    widths: Widths | None = Field(None, description="Units of every layer.")
    score: str | None = Field(None, description="pruning.score.")
    refit: str | None = Field(None, description="pruning.refit.")
    layout: str | None = Field(None, description="pruning.layout.")
    calibration_set: str | None = Field(None, description="Digest of the calibration set.")
    sequences: dict[str, int] = Field({}, description="Calibration sequences taken, by domain.")
    weights: dict[str, float] = Field({}, description="Weight of each domain in the score.")
    next_weights: dict[str, float] | None = Field(
        None, description="Weights for the next round; null where the round broke the model."
    )
    calibration_losses: dict[str, float] = Field({}, description="Nats per token, by domain.")
    score_domains: list[str] = Field([], description="Rows of the scores in `statistics/`.")
    notes: list[str] = Field([], description="What a reader of the result should know.")
    validation: Validation | None = Field(None, description="Losses on validation text.")
    drift: Drift | None = Field(None, description="Distance from the dense model.")
    health: Health | None = Field(None, description="Whether the round left a working model.")
    recovered_from: str | None = Field(None, description="Model digest before recovery.")
    recovery: Recovery | None = Field(None, description="How the model was trained afterwards.")
    run: str | None = Field(None, description="Identity of a library run: model, text, recipe.")


def write_round_record(directory: Path, record: RoundRecord) -> None:
    """Write ``round.json`` into a model directory."""
    records.write_record(directory / RECORD, record)


def read_round_record(directory: Path) -> RoundRecord:
    """Read ``round.json``.

    Raises:
        DamagedArtifactError: it is missing, or is not a record of this version.
    """
    return records.read_record(RoundRecord, directory / RECORD)
