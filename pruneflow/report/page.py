"""The report page: one HTML file that needs no network, for any screen, light or dark."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup

from pruneflow.artifacts import read_json
from pruneflow.judge.summary import Summary
from pruneflow.models.round_record import Health, RoundRecord
from pruneflow.paths import DISAGREEMENT, STATISTICS
from pruneflow.report import result_charts, round_charts
from pruneflow.report.calibration_tables import Manifest, check_rows, totals
from pruneflow.report.chart_style import library
from pruneflow.report.comparison_table import bytes_rows, mean_of, overview, speed_rows, tiles
from pruneflow.report.domain_agreement import agreement
from pruneflow.report.health_limit_use import limits_sentence
from pruneflow.report.rendering import render
from pruneflow.report.verdict import Ruling, verdict
from pruneflow.settings.pipeline import PipelineSettings

_NO_HEALTH = Health(healthy=False, reasons=[], reason="")  # of a round that was not measured


class Sources(NamedTuple):
    """What the page shows in addition to the summary.

    Attributes:
        dense: the dense model's record.
        rounds: the round.json of every round, in order.
        disagreement: of the delivered round; None where the dense model is delivered.
        documents: manifest of the table of documents.
        calibration: manifest of the calibration set.
        validation: what was checked of the table (data/calibration/validation.json).
        settings: the pipeline's.
    """

    dense: RoundRecord
    rounds: list[RoundRecord]
    disagreement: dict[str, Any] | None
    documents: Manifest
    calibration: Manifest
    validation: Manifest
    settings: PipelineSettings


def read_disagreement(directory: Path) -> dict[str, Any] | None:
    """Read how far domains disagreed in a round; None for the dense model.

    Raises:
        DamagedArtifactError: the file is not JSON.
    """
    path = directory / STATISTICS / DISAGREEMENT
    return dict(read_json(path)) if path.is_file() else None


def render_page(summary: Summary, sources: Sources, ruling: Ruling) -> str:
    """Return the report as HTML.

    Args:
        summary: the machine-readable result.
        sources: what the page shows in addition.
        ruling: what the gates against the dense model decide.
    """
    rounds, limits = sources.rounds, sources.settings.health
    agreed = agreement(sources.disagreement) if sources.disagreement else None
    drawings = {
        "retention": result_charts.retention_chart(summary.tasks),
        "perplexity": result_charts.perplexity_chart(summary.perplexity),
        "ratio": result_charts.ratio_chart(summary.perplexity),
        "rounds": round_charts.rounds_chart(summary.rounds, summary.knee),
        "health": round_charts.health_chart(summary.rounds, limits),
        "removed": round_charts.removed_chart(rounds, sources.dense),
        "agreement": round_charts.agreement_chart(agreed) if agreed else None,
        "recovery": round_charts.recovery_chart(summary.recovery),
        "speedup": result_charts.speedup_chart(summary.latency),
    }
    return render(
        "page.html.jinja",
        summary=summary,
        verdict=verdict(summary),
        ruling=ruling,
        tiles=tiles(summary),
        sections=overview(summary),
        mean_of=mean_of(summary),
        charts=drawings,
        specs={name: chart.spec for name, chart in drawings.items() if chart},
        library=Markup(library()),
        dense=sources.dense,
        rounds=rounds,
        limits=limits_sentence(limits),
        no_health=_NO_HEALTH,
        agreement=agreed,
        speed=speed_rows(summary.latency),
        sizes=bytes_rows(summary),
        documents=sources.documents,
        calibration=sources.calibration,
        held_out={name: domain.tokens for name, domain in summary.perplexity.domains.items()},
        validation=sources.validation,
        totals=totals(sources.documents, sources.calibration),
        checks=check_rows(sources.validation),
        calibrated=sorted({domain for record in rounds for domain in record.sequences}),
        settings=yaml.safe_dump(
            sources.settings.model_dump(mode="json", exclude={"registry", "notify"}),
            sort_keys=False,
            allow_unicode=True,
        ),
    )
