"""latency.json: speed, memory and disk usage of both models, and loading without pruneflow."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from pruneflow.records import Record


class Median(TypedDict):
    """Median of interleaved repeats."""

    median: Annotated[float, Field(description="The median.")]
    low: Annotated[float | None, Field(description="Lower end of its 95 % interval.")]
    high: Annotated[float | None, Field(description="Upper end of its 95 % interval.")]
    min: Annotated[float, Field(description="The minimum.")]
    max: Annotated[float, Field(description="The maximum.")]


class Speed(Record):
    """Speed of one model, or the pruned model's relative to the dense one's."""

    prefill: Median = Field(description="Tokens per second of a prompt; or the speed-up.")
    decode: Median = Field(description="Tokens per second after it; or the speed-up.")
    first_token: Median = Field(description="Seconds to the first token; or the speed-up.")


class Placement(Record):
    """Placement of the weights of both models while they were timed."""

    dense: str = Field(description="`whole`, `spread` or `streamed`.")
    pruned: str = Field(description="The same for the pruned model.")


class Timing(Record):
    """Speed of both models, and the circumstances."""

    dense: Speed = Field(description="The dense model.")
    pruned: Speed = Field(description="The pruned model.")
    speedup: Speed = Field(description="Paired ratios; above 1 the pruned model is faster.")
    placement: Placement = Field(description="Where the weights were.")
    device: str = Field(description="Name of the GPU, or `cpu`.")
    machine: str = Field(description="CPU architecture.")
    threads: int = Field(description="Number of torch threads.")
    dtype: str = Field(description="Data type of the weights.")
    prompt_tokens: int = Field(description="latency.prompt_tokens.")
    new_tokens: int = Field(description="latency.new_tokens.")
    repeats: int = Field(description="latency.repeats.")
    lm_eval_questions: int = Field(description="latency.lm_eval_questions.")
    width_multiple: int = Field(description="latency.width_multiple.")


class DiskUsage(Record):
    """Bytes on disk of a model directory."""

    total: int = Field(description="All files except round.json.")
    weights: int = Field(description="Weight files.")
    files: dict[str, int] = Field(description="By file.")


class DiskUsages(Record):
    """Bytes on disk of both model directories."""

    dense: DiskUsage = Field(description="The dense model.")
    pruned: DiskUsage = Field(description="The pruned model.")


class Memory(Record):
    """Memory of a fresh process that loads a model and generates, in bytes."""

    before: int = Field(description="Before loading, on the CPU.")
    peak: int = Field(description="At its peak, on the CPU.")
    device_peak: int | None = Field(
        description="Peak on the GPU; null without one, or if the model does not fit."
    )


class Memories(Record):
    """Memory of both models; null for one that does not load."""

    dense: Memory | None = Field(description="The dense model.")
    pruned: Memory | None = Field(description="The pruned model.")


class Reload(Record):
    """Whether a fresh process without pruneflow loads the pruned model and generates."""

    ok: bool = Field(description="Whether it does.")
    text: str | None = Field(description="Continuation of the first prompt.")
    reason: str | None = Field(description="Why it does not.")


class SampleOutput(Record):
    """A prompt and its greedy continuations."""

    prompt: str = Field(description="The prompt.")
    dense: str = Field(description="Continuation by the dense model.")
    pruned: str | None = Field(description="By the pruned model; null if it does not load.")


class LmEvalRun(Record):
    """lm-eval's own command on the pruned model's directory."""

    ok: bool = Field(description="Whether it succeeded.")
    reason: str | None = Field(description="Why it failed.")
    command: str = Field(description="The command.")
    task: str = Field(description="The task.")
    questions: int = Field(description="Number of questions.")
    metric: str | None = Field(description="Its metric.")
    accuracy: float | None = Field(description="Accuracy that lm-eval reports.")


class LmEvalAnswers(LmEvalRun):
    """lm-eval's own command on the pruned model's directory, with every answer."""

    correct: list[int] | None = Field(description="1 or 0 for each question, in order.")


class Deployment(Timing):
    """Measurements of both models, except lm-eval's command."""

    bytes: DiskUsages = Field(description="Bytes on disk.")
    memory: Memories = Field(description="Peak memory.")
    reload: Reload = Field(description="Whether the pruned model loads without pruneflow.")
    answers: list[SampleOutput] = Field(description="Sample outputs.")
    warnings: list[str] = Field(description="Slow widths, and models not timed whole on one GPU.")


class Latency(Deployment):
    """The content of latency.json."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    lm_eval: LmEvalAnswers = Field(description="lm-eval's command on the directory.")
