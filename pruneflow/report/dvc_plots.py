"""What `dvc metrics` and `dvc plots` show: headline figures, and tables of points to draw."""

from collections.abc import Sequence

from pruneflow.judge.compare import DomainPerplexity
from pruneflow.judge.summary import Summary
from pruneflow.models.round_record import RoundRecord
from pruneflow.settings.pipeline import DENSE

Point = dict[str, str | int | float | None]

# Health measures over all domains, with the dense model's values.
HEALTH = {
    "mean_ratio": 1.0,
    "worst_ratio": 1.0,
    "kl": 0.0,
    "top1_agreement": 1.0,
    "entropy_drift": 0.0,
    "norm_drift": 0.0,
}


def headline(summary: Summary) -> dict[str, float]:
    """Return the few figures of a summary that runs are compared by; flat, without intervals.

    What is not measurable is left out.
    """
    perplexity, speedup = summary.perplexity, summary.latency.speedup
    figures = {
        "parameters": summary.parameters.pruned,
        "block_ratio": summary.parameters.block_ratio,
        "bytes": summary.bytes.pruned,
        "perplexity_ratio": perplexity.mean_ratio["value"],
        "worst_perplexity_ratio": perplexity.worst["value"],
        "prefill_speedup": speedup.prefill["median"],
        "decode_speedup": speedup.decode["median"],
    }
    kept = summary.mean_retention
    return figures if kept is None else {**figures, "task_retention": kept["value"]}


def series(summary: Summary, rounds: Sequence[RoundRecord]) -> dict[str, list[Point]]:
    """Return the tables by name: ``rounds`` (size and health by round), ``domains``, ``widths``.

    Args:
        summary: data/reports/summary.json.
        rounds: the round.json of every round, in order; a skipped one has no points.
    """
    done = [record for record in rounds if record.status != "skipped"]
    dense: Point = {
        "round": DENSE,
        "block_ratio": 0.0,
        "parameters": summary.parameters.dense,
        **HEALTH,
    }
    return {
        "rounds": [dense, *map(_round_point, done)],
        "domains": _domains(summary.perplexity.domains),
        "widths": [point for record in done for point in _widths(record)],
    }


def _round_point(record: RoundRecord) -> Point:
    return {
        "round": record.round,
        "block_ratio": record.achieved_ratio,
        "parameters": record.parameters,
        **{key: getattr(record.health, key, None) for key in HEALTH},
    }


def _domains(domains: dict[str, DomainPerplexity]) -> list[Point]:
    """The delivered model by domain, on test text; the largest loss first."""
    ordered = sorted(domains.items(), key=lambda item: -item[1].ratio["value"])
    return [
        {
            "domain": domain,
            "dense": found.dense,
            "pruned": found.pruned,
            "ratio": found.ratio["value"],
        }
        for domain, found in ordered
    ]


def _widths(record: RoundRecord) -> list[Point]:
    """Neurons, heads and KV groups that remain after a round, by layer."""
    if record.widths is None:
        return []
    widths = dict(record.widths)
    return [
        {"round": record.round, "layer": layer, **dict(zip(widths, units, strict=True))}
        for layer, units in enumerate(zip(*widths.values(), strict=True))
    ]
