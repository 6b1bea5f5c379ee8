"""What page and card say of domains, tasks, rounds and the model's use, ready to print."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pruneflow.report.comparison_table import mean_of, of_both
from pruneflow.report.number_format import (
    MISSING,
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


class DomainRow(NamedTuple):
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
    """Accuracy on one task, what is kept of it, and how it was asked."""

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

    Below the worst ratio stands its domain, below the norm's drift its layer; `why` says what is
    wrong with a round that is not delivered.
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
    """Units left in a layer after one round, least to most."""

    name: str
    neurons: str
    heads: str
    kv_groups: str


class Spread(NamedTuple):
    """A median with its interval, and the least and the most."""

    median: Figure
    extremes: str


class SpeedRow(NamedTuple):
    """One measure of speed of both models."""

    measure: str
    dense: Spread
    pruned: Spread
    speedup: Spread


class BytesRow(NamedTuple):
    """One measure of size of both models."""

    measure: str
    dense: str
    pruned: str


def domain_rows(perplexity: dict[str, Any]) -> list[DomainRow]:
    """Return a row for each domain, and at last the geometric mean of the ratios."""
    rows = [
        DomainRow(
            name=name,
            dense=decimal(values["dense"]),
            pruned=decimal(values["pruned"]),
            ratio=ratio(values["ratio"]),
            dense_bits=decimal(values["bits_per_byte"]["dense"], 3),
            pruned_bits=decimal(values["bits_per_byte"]["pruned"], 3),
            windows=count(values["windows"]),
            tokens=count(values["tokens"]),
            bytes=count(values["bytes"]),
        )
        for name, values in perplexity["domains"].items()
    ]
    mean = DomainRow("geometric mean", "", "", ratio(perplexity["mean_ratio"]), *[""] * 5)
    return [*rows, mean]


def task_rows(summary: dict[str, Any]) -> list[TaskRow]:
    """Return a row for each task, and at last the means over the measurable ones."""
    rows = [
        TaskRow(
            name=name,
            dense=share(task["dense"]),
            pruned=share(task["pruned"]),
            difference=points(task["difference"]),
            kept=share(task["retention"]),
            above_chance=share(task["above_chance"]),
            chance=percent(task["chance"]),
            asked=f"{count(task['questions'])} of {count(task['available'])} questions, seed "
            f"{task['seed']}; shots: {task['shots']}; metric {task['metric']}; "
            f"version {task['version']}",
            problem=None if task["measurable"] else _problem(task),
        )
        for name, task in summary["tasks"].items()
    ]
    nothing = Figure("", "")
    mean = TaskRow(
        name=mean_of(summary),
        dense=nothing,
        pruned=nothing,
        difference=points(summary["mean_difference"]),
        kept=share(summary["mean_retention"]),
        above_chance=nothing,
        chance="",
        asked="",
        problem=None if summary["mean_retention"] else NOT_MEASURABLE,
    )
    return [*rows, mean]


def round_rows(summary: dict[str, Any]) -> list[RoundRow]:
    """Return a row for each round; what was not measured is a dash."""
    return [_round_row(record) for record in summary["rounds"]]


def knee_sentence(summary: dict[str, Any]) -> str:
    """Say after which round the descent gets steep."""
    if summary["knee"] is None:
        return "The descent has no knee: it has too few rounds, or does not get steeper."
    return f"Knee: {summary['knee']}; after this round the descent gets steep."


def width_rows(rounds: list[dict[str, Any]], dense: dict[str, Any]) -> list[WidthRow]:
    """Return a row for the dense model and for each round that left one."""
    return [
        WidthRow(
            record["round"],
            **{kind: span_of(record["widths"][kind]) for kind in ("neurons", "heads", "kv_groups")},
        )
        for record in (dense, *rounds)
        if record.get("widths")
    ]


def span_of(widths: list[int]) -> str:
    """Write the widths of layers, as in ``1120`` or ``900 to 1200``."""
    low, high = min(widths), max(widths)
    return count(low) if low == high else span(low, high, count)


def recovery_sentence(recovery: dict[str, Any]) -> str:
    """Say how long the pruned model was trained, and what came of it."""
    looks = {row["step"]: row["validation_loss"] for row in recovery["history"]}
    best = recovery["best_step"]
    early = ", when the held-out loss no longer fell" if recovery["stopped_early"] else ""
    return (
        f"The pruned model was trained to follow the dense one for {count(recovery['steps'])} "
        f"steps and {count(recovery['tokens'])} tokens{early}. On held-out text the divergence "
        f"went from {decimal(looks[0], 3)} to {decimal(looks[best], 3)} nats a token, at step "
        f"{count(best)}, whose weights were kept."
    )


def speed_rows(latency: dict[str, Any]) -> list[SpeedRow]:
    """Return prefill and decode in tokens per second, and the time to the first token."""
    measures: list[tuple[str, str, Callable[[float], str], Callable[[float], str]]] = [
        ("prefill", "Prefill, tokens/s", _rate, _rate),
        ("decode", "Decode, tokens/s", _rate, _rate),
        ("first_token", "First token", milliseconds, thousandfold),
    ]
    return [
        SpeedRow(
            label,
            _spread(latency["dense"][measure], write, bare),
            _spread(latency["pruned"][measure], write, bare),
            _spread(latency["speedup"][measure], times, decimal),
        )
        for measure, label, write, bare in measures
    ]


def bytes_rows(summary: dict[str, Any]) -> list[BytesRow]:
    """Return what both models take on disk and in memory; on a GPU only where one was used."""
    memory = summary["memory"]
    on_gpu = of_both(memory, "device_peak")
    measures = [
        ("Model directory on disk", summary["disk"]),
        ("of which weights", summary["bytes"]),
        ("Peak memory of a process that loads and writes", of_both(memory, "peak")),
        ("of which before loading", of_both(memory, "before")),
        *([("Peak GPU memory of the same", on_gpu)] if any(on_gpu.values()) else []),
    ]
    return [
        BytesRow(label, megabytes(found["dense"]), megabytes(found["pruned"]))
        for label, found in measures
    ]


def _problem(task: dict[str, Any]) -> str:
    return (
        f"{NOT_MEASURABLE}: the dense model's own accuracy, {share(task['dense'])}, is not above "
        f"chance, {percent(task['chance'])}"
    )


def _round_row(record: dict[str, Any]) -> RoundRow:
    health = record["health"] or {}
    layer, parameters = health.get("norm_layer"), record["parameters"]
    return RoundRow(
        name=record["round"],
        status=record["status"],
        target=target(record["target"]),
        removed=percent(record["achieved_ratio"]),
        parameters=MISSING if parameters is None else count(parameters),
        mean=times(record["mean_ratio"]),
        worst=Figure(times(health.get("worst_ratio")), health.get("worst_domain") or ""),
        kl=decimal(health.get("kl"), 3),
        agreement=percent(health.get("top1_agreement")),
        repetition=signed(health.get("repetition", {}).get("rise")),
        entropy=signed(health.get("entropy_drift")),
        norm=Figure(
            decimal(health.get("norm_drift"), 3), "" if layer is None else f"layer {layer}"
        ),
        why=_why(record),
    )


def _why(record: dict[str, Any]) -> str | None:
    """Say why a round is not delivered; None of one that went well."""
    if record["status"] == "unhealthy":
        reasons = " ".join(record["health"]["reasons"])
        return f"{reasons} Kept for study; the run delivers {record['delivered']}."
    if record["status"] == "skipped":
        return f"The descent ended before it; the run delivers {record['delivered']}."
    return None


def _spread(
    found: dict[str, Any], write: Callable[[float], str], bare: Callable[[float], str]
) -> Spread:
    return Spread(figure(found, write, bare, "median"), span(found["min"], found["max"], bare))


def _rate(value: float) -> str:
    return decimal(value, 1)
