"""Tables of speed and size on the page."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pruneflow.judge.summary import Summary
from pruneflow.measure.latency_record import Median, Timing
from pruneflow.report.comparison_table import of_both
from pruneflow.report.number_format import (
    Figure,
    decimal,
    figure,
    milliseconds,
    span,
    thousandfold,
    times,
)


class Spread(NamedTuple):
    """A median with its interval, and the least and the most, ready to print."""

    median: Figure
    extremes: str


def speed_rows(latency: Timing) -> dict[str, list[Spread]]:
    """Return prefill and decode in tokens per second, and the time to the first token.

    Each is given for the dense model, the pruned model, and as speed-up.
    """
    rate = partial(decimal, places=1)
    measures: dict[str, tuple[str, Callable[[float], str], Callable[[float], str]]] = {
        "prefill": ("Prefill, tokens/s", rate, rate),
        "decode": ("Decode, tokens/s", rate, rate),
        "first_token": ("First token", milliseconds, thousandfold),
    }
    return {
        label: [
            _spread(getattr(latency.dense, key), write, bare),
            _spread(getattr(latency.pruned, key), write, bare),
            _spread(getattr(latency.speedup, key), times, decimal),
        ]
        for key, (label, write, bare) in measures.items()
    }


def bytes_rows(summary: Summary) -> list[tuple[str, int | None, int | None]]:
    """Return what both models take on disk and in memory; on a GPU only where one was used."""
    memory, disk, weights = summary.memory, summary.disk, summary.bytes
    on_gpu = of_both(memory, lambda one: one.device_peak)
    return [
        ("Model directory on disk", disk.dense, disk.pruned),
        ("of which weights", weights.dense, weights.pruned),
        (
            "Peak memory of a process that loads and generates",
            *of_both(memory, lambda one: one.peak),
        ),
        ("of which before loading", *of_both(memory, lambda one: one.before)),
        *([("Peak GPU memory of the same", *on_gpu)] if any(on_gpu) else []),
    ]


def _spread(found: Median, write: Callable[[float], str], bare: Callable[[float], str]) -> Spread:
    return Spread(figure(found, write, bare, "median"), span(found["min"], found["max"], bare))
