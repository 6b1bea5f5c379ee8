"""The report page: one HTML file that needs no network, for a phone or a desk, light or dark."""

from typing import Any, NamedTuple

import yaml

from pruneflow.config import PipelineSettings
from pruneflow.reporting import agreement, calibration_data, charts, details, round_charts
from pruneflow.reporting.chart_style import library
from pruneflow.reporting.comparison import headline, overview
from pruneflow.reporting.health_limits import limits_sentence
from pruneflow.reporting.templates import render
from pruneflow.reporting.verdict import Ruling, verdict


class Sources(NamedTuple):
    """What the page shows beside the summary.

    Attributes:
        dense: the dense model's record.
        rounds: the round.json of every round, in order.
        disagreement: of the delivered round; None where the dense model is delivered.
        documents: manifest of the table of documents.
        calibration: manifest of the calibration set.
        validation: what was checked of the table (data/calibration/validation.json).
        settings: the pipeline's.
    """

    dense: dict[str, Any]
    rounds: list[dict[str, Any]]
    disagreement: dict[str, Any] | None
    documents: dict[str, Any]
    calibration: dict[str, Any]
    validation: dict[str, Any]
    settings: PipelineSettings


def render_page(summary: dict[str, Any], sources: Sources, ruling: Ruling) -> str:
    """Return the report as HTML.

    Args:
        summary: the machine-readable result.
        sources: what the page shows beside it.
        ruling: what the gates against the dense model say.
    """
    from markupsafe import Markup

    documents, calibration, rounds = sources.documents, sources.calibration, sources.rounds
    limits = sources.settings.health.model_dump()
    disagreement, recovery = sources.disagreement, summary["recovery"]
    drawings = {
        "retention": charts.retention_chart(summary["tasks"]),
        "perplexity": charts.perplexity_chart(summary["perplexity"]),
        "ratio": charts.ratio_chart(summary["perplexity"]),
        "descent": round_charts.descent_chart(summary["rounds"], summary["knee"]),
        "health": round_charts.health_chart(summary["rounds"], limits),
        "removed": round_charts.removed_chart(rounds, sources.dense),
        "agreement": round_charts.agreement_chart(disagreement) if disagreement else None,
        "recovery": round_charts.recovery_chart(recovery),
        "speedup": charts.speedup_chart(summary["latency"]),
    }
    held_out = {name: facts["tokens"] for name, facts in summary["perplexity"]["domains"].items()}
    return render(
        "page.html.jinja",
        summary=summary,
        verdict=verdict(summary),
        ruling=ruling,
        headline=headline(summary),
        sections=overview(summary),
        charts=drawings,
        specs={name: chart.spec for name, chart in drawings.items() if chart},
        library=Markup(library()),
        perplexity=details.domain_rows(summary["perplexity"]),
        accuracy=details.task_rows(summary),
        descent=details.round_rows(summary),
        knee=details.knee_sentence(summary),
        limits=limits_sentence(limits),
        widths=details.width_rows(rounds, sources.dense),
        agreement=agreement.tables(disagreement) if disagreement else None,
        recovery=details.recovery_sentence(recovery) if recovery else None,
        speed=details.speed_rows(summary["latency"]),
        sizes=details.bytes_rows(summary),
        totals=calibration_data.totals(documents, calibration),
        domains=calibration_data.domain_rows(documents, calibration, held_out),
        sources=calibration_data.source_rows(documents),
        checked=calibration_data.checked(sources.validation),
        weighed=calibration_data.weighed(rounds),
        settings=yaml.safe_dump(
            sources.settings.model_dump(mode="json", exclude={"registry", "notify"}),
            sort_keys=False,
            allow_unicode=True,
        ),
    )
