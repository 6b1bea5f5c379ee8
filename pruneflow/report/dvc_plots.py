"""What `dvc metrics` and `dvc plots` show: the headline figures, and tables of points to draw."""

from collections.abc import Mapping, Sequence
from typing import Any

from pruneflow.settings.pipeline import DENSE

Record = dict[str, Any]

# What a round's health says about the whole model, and what the dense model would have there.
HEALTH = {
    "mean_ratio": 1.0,
    "worst_ratio": 1.0,
    "kl": 0.0,
    "top1_agreement": 1.0,
    "entropy_drift": 0.0,
    "norm_drift": 0.0,
}


def headline(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the few figures of summary.json that runs are compared by; flat, without intervals.

    What is not measurable is left out.
    """
    perplexity, speedup = summary["perplexity"], summary["latency"]["speedup"]
    figures = {
        "parameters": summary["parameters"]["pruned"],
        "block_ratio": summary["parameters"]["block_ratio"],
        "bytes": summary["bytes"]["pruned"],
        "perplexity_ratio": perplexity["mean_ratio"]["value"],
        "worst_perplexity_ratio": perplexity["worst"]["value"],
        "prefill_speedup": speedup["prefill"]["median"],
        "decode_speedup": speedup["decode"]["median"],
    }
    kept = summary["mean_retention"]
    return figures if kept is None else {**figures, "task_retention": kept["value"]}


def series(
    summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, list[Record]]:
    """Return the tables by name: ``descent``, ``domains`` and ``widths``.

    Args:
        summary: data/reports/summary.json.
        rounds: the round.json of every round, in order; a skipped one has no points.
    """
    done = [record for record in rounds if record["status"] != "skipped"]
    return {
        "descent": _descent(done, summary["parameters"]["dense"]),
        "domains": _domains(summary["perplexity"]["domains"]),
        "widths": [record for each in done for record in _widths(each)],
    }


def _descent(rounds: Sequence[Mapping[str, Any]], parameters: int) -> list[Record]:
    """The dense model and each round: size, and health as a whole, on validation text."""
    start = {"round": DENSE, "block_ratio": 0.0, "parameters": parameters, **HEALTH}
    return [start, *(_point(record) for record in rounds)]


def _point(record: Mapping[str, Any]) -> Record:
    return {
        "round": record["round"],
        "block_ratio": record["achieved_ratio"],
        "parameters": record["parameters"],
        **{key: record["health"].get(key) for key in HEALTH},
    }


def _domains(domains: Mapping[str, Any]) -> list[Record]:
    """The delivered model by domain, on test text; the largest loss first."""
    points = [
        {
            "domain": domain,
            "dense": found["dense"],
            "pruned": found["pruned"],
            "ratio": found["ratio"]["value"],
        }
        for domain, found in domains.items()
    ]
    return sorted(points, key=lambda point: -point["ratio"])


def _widths(record: Mapping[str, Any]) -> list[Record]:
    """How many neurons, heads and KV groups a round left, by layer."""
    widths = record["widths"]
    return [
        {"round": record["round"], "layer": layer, **dict(zip(widths, left, strict=True))}
        for layer, left in enumerate(zip(*widths.values(), strict=True))
    ]
