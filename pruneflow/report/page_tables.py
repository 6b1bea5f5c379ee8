"""Tables of the page and the card about domains, tasks, rounds and deployment, ready to print."""

from collections.abc import Callable
from typing import NamedTuple

from pruneflow.judge.compare import PerplexityComparison, TaskComparison
from pruneflow.judge.summary import RoundSummary, Summary
from pruneflow.measure.latency_record import Median, Timing
from pruneflow.models.round_record import Health, Recovery, RoundRecord
from pruneflow.report.comparison_table import mean_of, of_both
from pruneflow.report.number_format import (
    NOT_MEASURABLE,
    Figure,
    count,
    decimal,
    figure,
    megabytes,
    milliseconds,
    percent,
    points,
    ratio,
    share,
    signed,
    span,
    target,
    thousandfold,
    times,
)

_NO_HEALTH = Health(healthy=False, reasons=[], reason="")  # of a round that was not measured


class PerplexityRow(NamedTuple):
    """Perplexity of one domain, and the text that it was measured on."""

    name: str
    dense: str
    pruned: str
    ratio: Figure
    dense_bits: str
    pruned_bits: str
    windows: str
    tokens: str
    bytes: str


class TaskRow(NamedTuple):
    """Accuracy on one task, the share that is kept, and how it was asked."""

    name: str
    dense: Figure
    pruned: Figure
    difference: Figure
    kept: Figure
    above_chance: Figure
    chance: str
    asked: str
    problem: str | None


class RoundRow(NamedTuple):
    """Size and health of one round.

    The worst ratio has its domain as note, the norm's drift its layer; `why` explains why a round
    is not delivered.
    """

    name: str
    status: str
    target: str
    removed: str
    parameters: str
    mean: str
    worst: Figure
    kl: str
    agreement: str
    repetition: str
    entropy: str
    norm: Figure
    why: str | None


class WidthRow(NamedTuple):
    """Units per layer after one round, least to most."""

    name: str
    neurons: str
    heads: str
    kv_groups: str


class SpreadCell(NamedTuple):
    """A median with its interval, and the least and the most."""

    median: Figure
    extremes: str


class SpeedRow(NamedTuple):
    """One measure of speed of both models."""

    measure: str
    dense: SpreadCell
    pruned: SpreadCell
    speedup: SpreadCell


class BytesRow(NamedTuple):
    """One measure of size of both models."""

    measure: str
    dense: str
    pruned: str


def perplexity_rows(perplexity: PerplexityComparison) -> list[PerplexityRow]:
    """Return a row for each domain, then the geometric mean of the ratios."""
    rows = [
        PerplexityRow(
            name=name,
            dense=decimal(domain.dense),
            pruned=decimal(domain.pruned),
            ratio=ratio(domain.ratio),
            dense_bits=decimal(domain.bits_per_byte.dense, 3),
            pruned_bits=decimal(domain.bits_per_byte.pruned, 3),
            windows=count(domain.windows),
            tokens=count(domain.tokens),
            bytes=count(domain.bytes),
        )
        for name, domain in perplexity.domains.items()
    ]
    mean = PerplexityRow("geometric mean", "", "", ratio(perplexity.mean_ratio), *[""] * 5)
    return [*rows, mean]


def task_rows(summary: Summary) -> list[TaskRow]:
    """Return a row for each task, then the means over the measurable ones."""
    rows = [
        TaskRow(
            name=name,
            dense=share(task.dense),
            pruned=share(task.pruned),
            difference=points(task.difference),
            kept=share(task.retention),
            above_chance=share(task.above_chance),
            chance=percent(task.chance),
            asked=f"{count(task.questions)} of {count(task.available)} questions, seed "
            f"{task.seed}; shots: {task.shots}; metric {task.metric}; version {task.version}",
            problem=None if task.measurable else _problem(task),
        )
        for name, task in summary.tasks.items()
    ]
    nothing = Figure("", "")
    mean = TaskRow(
        name=mean_of(summary),
        dense=nothing,
        pruned=nothing,
        difference=points(summary.mean_difference),
        kept=share(summary.mean_retention),
        above_chance=nothing,
        chance="",
        asked="",
        problem=None if summary.mean_retention else NOT_MEASURABLE,
    )
    return [*rows, mean]


def round_rows(summary: Summary) -> list[RoundRow]:
    """Return a row for each round; what was not measured is a dash."""
    return [_round_row(record) for record in summary.rounds]


def knee_sentence(summary: Summary) -> str:
    """Name the round after which the loss rises steeply."""
    if summary.knee is None:
        return "No knee: there are too few rounds, or the loss does not rise more steeply."
    return f"Knee: {summary.knee}; after this round the loss rises steeply."


def width_rows(rounds: list[RoundRecord], dense: RoundRecord) -> list[WidthRow]:
    """Return a row for the dense model and for each round that has a model."""
    return [
        WidthRow(
            record.round,
            span_of(record.widths.neurons),
            span_of(record.widths.heads),
            span_of(record.widths.kv_groups),
        )
        for record in (dense, *rounds)
        if record.widths
    ]


def span_of(widths: list[int]) -> str:
    """Write the widths of layers, as in ``1120`` or ``900 to 1200``."""
    low, high = min(widths), max(widths)
    return count(low) if low == high else span(low, high, count)


def recovery_sentence(recovery: Recovery) -> str:
    """Write how long the pruned model was trained, and the result."""
    losses = {row.step: row.validation_loss for row in recovery.history}
    best = recovery.best_step
    early = ", until the held-out loss stopped falling" if recovery.stopped_early else ""
    return (
        f"The pruned model was trained to follow the dense one for {count(recovery.steps)} "
        f"steps and {count(recovery.tokens)} tokens{early}. On held-out text the divergence "
        f"went from {decimal(losses[0], 3)} to {decimal(losses[best], 3)} nats per token, at step "
        f"{count(best)}, whose weights were kept."
    )


def speed_rows(latency: Timing) -> list[SpeedRow]:
    """Return prefill and decode in tokens per second, and the time to the first token."""
    dense, pruned, speedup = latency.dense, latency.pruned, latency.speedup
    return [
        _speed_row("Prefill, tokens/s", dense.prefill, pruned.prefill, speedup.prefill),
        _speed_row("Decode, tokens/s", dense.decode, pruned.decode, speedup.decode),
        SpeedRow(
            "First token",
            _spread(dense.first_token, milliseconds, thousandfold),
            _spread(pruned.first_token, milliseconds, thousandfold),
            _spread(speedup.first_token, times, decimal),
        ),
    ]


def bytes_rows(summary: Summary) -> list[BytesRow]:
    """Return what both models take on disk and in memory; on a GPU only where one was used."""
    memory, disk, weights = summary.memory, summary.disk, summary.bytes
    on_gpu = of_both(memory, lambda one: one.device_peak)
    measures = [
        ("Model directory on disk", (disk.dense, disk.pruned)),
        ("of which weights", (weights.dense, weights.pruned)),
        (
            "Peak memory of a process that loads and generates",
            of_both(memory, lambda one: one.peak),
        ),
        ("of which before loading", of_both(memory, lambda one: one.before)),
        *([("Peak GPU memory of the same", on_gpu)] if any(on_gpu) else []),
    ]
    return [
        BytesRow(label, megabytes(dense), megabytes(pruned)) for label, (dense, pruned) in measures
    ]


def _problem(task: TaskComparison) -> str:
    return (
        f"{NOT_MEASURABLE}: the dense model's own accuracy, {share(task.dense)}, is not above "
        f"chance, {percent(task.chance)}"
    )


def _round_row(record: RoundSummary) -> RoundRow:
    health = record.health or _NO_HEALTH
    layer = health.norm_layer
    return RoundRow(
        name=record.round,
        status=record.status,
        target=target(record.target),
        removed=percent(record.achieved_ratio),
        parameters=count(record.parameters),
        mean=times(record.mean_ratio),
        worst=Figure(times(health.worst_ratio), health.worst_domain or ""),
        kl=decimal(health.kl, 3),
        agreement=percent(health.top1_agreement),
        repetition=signed(health.repetition.rise if health.repetition else None),
        entropy=signed(health.entropy_drift),
        norm=Figure(decimal(health.norm_drift, 3), "" if layer is None else f"layer {layer}"),
        why=_why(record),
    )


def _why(record: RoundSummary) -> str | None:
    """Explain why a round is not delivered; None for one that went well."""
    if record.status == "unhealthy":
        reasons = " ".join(record.health.reasons) if record.health else ""
        return f"{reasons} Kept for inspection; the run delivers {record.delivered}."
    if record.status == "skipped":
        return f"An earlier round ended the pruning; the run delivers {record.delivered}."
    return None


def _speed_row(measure: str, dense: Median, pruned: Median, speedup: Median) -> SpeedRow:
    return SpeedRow(
        measure,
        _spread(dense, _rate, _rate),
        _spread(pruned, _rate, _rate),
        _spread(speedup, times, decimal),
    )


def _spread(
    found: Median, write: Callable[[float], str], bare: Callable[[float], str]
) -> SpreadCell:
    return SpreadCell(figure(found, write, bare, "median"), span(found["min"], found["max"], bare))


def _rate(value: float) -> str:
    return decimal(value, 1)
