"""Compare the evaluations of two models: pruned with dense, or candidate with production."""

from typing import Annotated, NamedTuple

from pydantic import Field

from pruneflow.errors import InputError
from pruneflow.judge.intervals import Estimate
from pruneflow.judge.retention import (
    TaskRetention,
    mean_over_tasks,
    perplexity_estimates,
    task_retention,
)
from pruneflow.measure.evaluation_record import EvaluatedModel, Evaluation, TaskQuestions
from pruneflow.records import DomainLoss, Record
from pruneflow.settings.pipeline import EvaluationSettings

# What two evaluations must share to be compared, and what it is called.
SAME = {
    "tokenizer": "tokenizer",
    "held_out": "held-out text",
    "questions": "questions and prompts",
    "dtype": "compute.dtype",
}


class Counts(Record):
    """One count of both models."""

    dense: int = Field(description="The dense model.")
    pruned: int = Field(description="The pruned model.")


class ParameterCounts(Counts):
    """Parameters of both models."""

    ratio: float = Field(description="Share of the dense model's parameters that is removed.")
    block_weights: Counts = Field(description="Weights in the matrices of all blocks.")
    block_ratio: float = Field(description="Share of the block weights that is removed.")


class WeightBytes(Counts):
    """Bytes of the weight files of both models."""

    ratio: float = Field(description="pruned / dense.")


class BitsPerByte(Record):
    """Bits per byte of both models."""

    dense: float = Field(description="The dense model.")
    pruned: float = Field(description="The pruned model.")


class DomainPerplexity(Record):
    """Perplexity of both models on the test text of one domain."""

    dense: float = Field(description="The dense model.")
    pruned: float = Field(description="The pruned model.")
    ratio: Estimate = Field(description="pruned / dense.")
    tokens: int = Field(description="Scored tokens.")
    windows: int = Field(description="Windows, the units of the bootstrap.")
    bytes: int = Field(description="Bytes of the scored text.")
    bits_per_byte: BitsPerByte = Field(description="Comparable between tokenizers.")


class WorstDomain(Estimate):
    """The highest ratio, and its domain."""

    domain: Annotated[str, Field(description="Its domain.")]


class PerplexityComparison(Record):
    """Perplexity of both models on test text."""

    domains: dict[str, DomainPerplexity] = Field(description="By domain.")
    mean_ratio: Estimate = Field(description="Geometric mean of the ratios.")
    worst: WorstDomain = Field(description="The domain with the highest ratio.")


class TaskComparison(TaskRetention, TaskQuestions):
    """Accuracy of both models on one task."""


class Comparison(Record):
    """Two evaluations compared; the reference's figures are named `dense`."""

    parameters: ParameterCounts = Field(description="Parameters.")
    bytes: WeightBytes = Field(description="Bytes of weights.")
    perplexity: PerplexityComparison = Field(description="Perplexity on test text.")
    tasks: dict[str, TaskComparison] = Field(description="Accuracy, by task.")
    mean_difference: Estimate | None = Field(
        description="Mean of `difference` over the measurable tasks; null where there is none."
    )
    mean_retention: Estimate | None = Field(description="Mean of `retention` over the same tasks.")


class Names(NamedTuple):
    """What errors call the two models."""

    reference: str
    candidate: str


STAGES = Names("baseline", "evaluation")


def compare(
    reference: Evaluation,
    candidate: Evaluation,
    settings: EvaluationSettings,
    names: Names = STAGES,
) -> Comparison:
    """Compare two evaluations, with paired 95 % intervals.

    Args:
        reference: of the model to compare with.
        candidate: of the pruned model.
        settings: bootstrap resamples and seed.
        names: what errors call the two.

    Raises:
        InputError: the two were measured on different text or questions, or with another
            tokenizer or data type.
    """
    check_comparable(reference, candidate, names)
    found, draws = {}, {}
    for place, (name, asked) in enumerate(candidate.tasks.items()):
        found[name], draws[name] = task_retention(
            reference.tasks[name].correct,
            asked.correct,
            asked.chance,
            settings.bootstrap_samples,
            settings.seed + place,
        )
    means = mean_over_tasks(found, draws)
    before, after = reference.model, candidate.model
    return Comparison(
        parameters=_parameters(before, after),
        bytes=WeightBytes(dense=before.bytes, pruned=after.bytes, ratio=after.bytes / before.bytes),
        perplexity=_perplexity(reference.perplexity, candidate.perplexity, settings),
        tasks={
            name: TaskComparison(
                **asked.model_dump(include=set(TaskQuestions.model_fields)),
                **dict(found[name]),
            )
            for name, asked in candidate.tasks.items()
        },
        mean_difference=means.difference,
        mean_retention=means.retention,
    )


def check_comparable(reference: Evaluation, candidate: Evaluation, names: Names) -> None:
    """Check that two evaluations are of the same text, questions, tokenizer and data type.

    Raises:
        InputError: they are not, or one has no task or domain of the other.
    """
    for key, called in SAME.items():
        first, second = getattr(reference, key), getattr(candidate, key)
        if first != second:
            fix = "run `dvc repro` again"
            if key == "dtype":
                fix = "set compute.dtype in configs/pipeline.yaml to measure both in one data type"
            raise InputError(
                f"{names.reference} and {names.candidate} differ in {called} ({first[:12]} "
                f"and {second[:12]}), so they cannot be compared: {fix}"
            )
    if set(reference.tasks) != set(candidate.tasks):
        name = sorted(set(reference.tasks) ^ set(candidate.tasks))[0]
        raise InputError(
            f"{names.reference} and {names.candidate} were not asked the same tasks ({name}), so "
            "they cannot be compared: run `dvc repro` again"
        )


def _parameters(dense: EvaluatedModel, pruned: EvaluatedModel) -> ParameterCounts:
    return ParameterCounts(
        dense=dense.parameters,
        pruned=pruned.parameters,
        ratio=1 - pruned.parameters / dense.parameters,
        block_weights=Counts(dense=dense.block_weights, pruned=pruned.block_weights),
        block_ratio=1 - pruned.block_weights / dense.block_weights,
    )


def _perplexity(
    dense: dict[str, DomainLoss], pruned: dict[str, DomainLoss], settings: EvaluationSettings
) -> PerplexityComparison:
    found = perplexity_estimates(dense, pruned, settings.bootstrap_samples, settings.seed)
    return PerplexityComparison(
        domains={
            domain: DomainPerplexity(
                dense=dense[domain]["perplexity"],
                pruned=pruned[domain]["perplexity"],
                ratio=ratio,
                tokens=dense[domain]["tokens"],
                windows=len(dense[domain]["windows"]),
                bytes=dense[domain]["bytes"],
                bits_per_byte=BitsPerByte(
                    dense=dense[domain]["bits_per_byte"],
                    pruned=pruned[domain]["bits_per_byte"],
                ),
            )
            for domain, ratio in found.domains.items()
        },
        mean_ratio=found.mean,
        worst={"domain": found.worst, **found.domains[found.worst]},
    )
