"""baseline.json and evaluation.json: measurements of a model on the test text and the tasks."""

from typing import Literal

from pydantic import Field

from pruneflow.models.round_record import Recovery, Sizes
from pruneflow.records import DomainLoss, Record


class EvaluatedModel(Sizes):
    """The evaluated model and its size."""

    digest: str = Field(description="Model digest.")
    delivered_digest: str | None = Field(
        description="Digest of the round it was recovered from; the same without recovery."
    )
    recovery: Recovery | None = Field(description="How it was recovered; null without recovery.")
    bytes: int = Field(description="Bytes of the weight files.")


class TaskQuestions(Record):
    """How a task was asked; the same for both models."""

    metric: Literal["acc", "acc_norm", "exact_match"] = Field(
        description="lm-eval's metric that counts as accuracy."
    )
    chance: float = Field(description="Accuracy of guessing.")
    questions: int = Field(description="Number of questions.")
    available: int = Field(description="Number of questions they were sampled from.")
    seed: int = Field(description="Seed of the sample.")
    output_type: str = Field(description="lm-eval's output type.")
    shots: int = Field(description="Few-shot examples in a prompt.")
    version: float = Field(description="Version of the task file.")
    template: str = Field(description="Template of the prompts.")
    prompt: str = Field(description="The first prompt in full.")
    digest: str = Field(description="sha256 of task file and questions.")


class TaskAnswers(TaskQuestions):
    """A model's answers to the questions of a task."""

    acc: float | None = Field(None, description="Accuracy; null if the task does not use it.")
    acc_norm: float | None = Field(
        None, description="Accuracy with log-likelihoods divided by the length of the choice."
    )
    exact_match: float | None = Field(None, description="Share of generated answers that match.")
    correct: list[int] = Field(description="1 or 0 for each question, in the order of the file.")
    answers: list[str] = Field([], description="The first generated answers.")

    @property
    def accuracy(self) -> float:
        """The accuracy by the task's metric."""
        return float(getattr(self, self.metric))


class Evaluation(Record):
    """The content of baseline.json (dense model) and evaluation.json (delivered model)."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    model: EvaluatedModel = Field(description="The model.")
    perplexity: dict[str, DomainLoss] = Field(description="Losses on the test text, by domain.")
    tasks: dict[str, TaskAnswers] = Field(description="Answers to the questions, by task.")
    tokenizer: str = Field(description="Digest of the tokenizer.")
    held_out: str = Field(description="Digest of the held-out text.")
    questions: str = Field(description="Digest of questions and prompts.")
    dtype: str = Field(description="Data type of the model.")
