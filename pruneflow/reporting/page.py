"""The report page: one HTML file that needs no network, for a phone or a desk, light or dark."""

from typing import Any

from pruneflow.reporting import calibration_data, charts, details
from pruneflow.reporting.comparison import overview
from pruneflow.reporting.summary import verdict
from pruneflow.reporting.templates import render


def render_page(
    summary: dict[str, Any],
    rounds: list[dict[str, Any]],
    documents: dict[str, Any],
    calibration: dict[str, Any],
    validation: dict[str, Any],
) -> str:
    """Return the report as HTML.

    Args:
        summary: the machine-readable result.
        rounds: the round.json of every round, in order (for the widths of layers).
        documents: manifest of the table of documents.
        calibration: manifest of the calibration set.
        validation: what was checked of the table (data/calibration/validation.json).
    """
    from markupsafe import Markup

    drawings: dict[str, str | None] = {
        "descent": None,
        "widths": None,
        "perplexity": charts.perplexity_chart(summary["perplexity"]),
        "retention": charts.retention_chart(summary["tasks"]),
    }
    if any(record["mean_ratio"] is not None for record in summary["rounds"]):
        drawings["descent"] = charts.descent_chart(summary["rounds"], summary["knee"])
    if any(record.get("widths") for record in rounds):
        drawings["widths"] = charts.widths_chart(rounds)
    held_out = {name: facts["tokens"] for name, facts in summary["perplexity"]["domains"].items()}
    return render(
        "page.html.jinja",
        summary=summary,
        verdict=verdict(summary),
        sections=overview(summary),
        charts={name: Markup(svg) if svg else None for name, svg in drawings.items()},
        perplexity=details.domain_rows(summary["perplexity"]),
        accuracy=details.task_rows(summary),
        descent=details.round_rows(summary),
        knee=details.knee_sentence(summary),
        speed=details.speed_rows(summary["latency"]),
        sizes=details.bytes_rows(summary),
        totals=calibration_data.totals(documents, calibration),
        domains=calibration_data.domain_rows(documents, calibration, held_out),
        sources=calibration_data.source_rows(documents),
        checked=calibration_data.checked(validation),
        weighed=calibration_data.weighed(rounds),
    )
