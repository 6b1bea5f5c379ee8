"""Charts of the rounds: perplexity, health, removed units, agreement of domains, recovery."""

from operator import itemgetter
from typing import Any

import altair as alt

from pruneflow.judge.summary import RoundSummary
from pruneflow.models.round_record import Recovery, RoundRecord, Widths
from pruneflow.report.chart_style import ACCENT, BAD, INK, ROW, SECOND, Chart, finish
from pruneflow.report.domain_agreement import Agreement
from pruneflow.report.health_limit_use import uses
from pruneflow.report.number_format import decimal, percent, span_of, times
from pruneflow.settings.pipeline import HealthSettings

LINEAR = 10  # perplexity ratio up to which an axis is linear; one broken round would hide the rest
NAMES = {"neurons": "neurons", "heads": "query heads", "kv_groups": "KV groups"}
_CELL = 22  # pixels
_SPACED = alt.Scale(padding=0.06)  # of cells
_SHADES = [0.06, 1]  # opacities of zero and of the maximum: an empty cell stays visible


def rounds_chart(rounds: list[RoundSummary], knee: str | None) -> Chart | None:
    """Draw validation perplexity over the rounds, mean and worst domain, from the dense model.

    Args:
        rounds: the summary's.
        knee: name of the round after which the loss rises steeply.

    Returns:
        The chart, or None where no round was measured.
    """
    mean, worst = "mean of domains", "worst domain"
    dense = {"removed": 0.0, "block weights removed": "0", "ratio": 1.0, "times": times(1.0)}
    rows: list[dict[str, Any]] = [
        {**dense, "round": "dense", "label": "", "series": series} for series in (mean, worst)
    ]
    texts = []
    for record in rounds:
        if record.mean_ratio is None or record.achieved_ratio is None:
            continue
        remarks, removed = _remarks(record, knee), percent(record.achieved_ratio)
        common = {
            "removed": 100 * record.achieved_ratio,
            "round": ", ".join([record.round, *remarks]),
            "remark": remarks[0] if remarks else None,
            "block weights removed": removed,
        }
        highest = record.health.worst_ratio if record.health else None
        domain = record.health.worst_domain if record.health else None
        points = [(mean, record.mean_ratio, mean, common["round"]), (worst, highest, domain, "")]
        for series, value, name, label in points:
            if value is not None:
                row = {"ratio": value, "series": series, "label": label, "domain": name}
                rows.append({**common, **row, "times": times(value)})
        texts.append(
            f"{' '.join([record.round, *remarks])} at {removed} removed: mean "
            f"{times(record.mean_ratio)}, worst {decimal(highest)}"
        )
    if not texts:
        return None
    scale = alt.Scale(zero=False, padding=24, nice=False)
    if max(row["ratio"] for row in rows) > LINEAR:
        scale = alt.Scale(type="log", padding=24, nice=False)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("removed:Q", title="block weights removed, per cent", axis=alt.Axis(tickCount=6)),
        y=alt.Y(
            "ratio:Q",
            scale=scale,
            axis=alt.Axis(tickCount=5, format="~g"),
            title="perplexity, pruned / dense",
        ),
        color=alt.Color(
            "series:N",
            scale=alt.Scale(domain=[mean, worst], range=[ACCENT, SECOND]),
            title=None,
        ),
        tooltip=[
            "round:N",
            "block weights removed:N",
            alt.Tooltip("domain:N", title="of"),
            alt.Tooltip("times:N", title="perplexity, pruned / dense"),
        ],
    )
    ring = base.transform_filter(f"datum.remark && datum.series == '{mean}'")
    chart = alt.layer(
        base.mark_line(strokeWidth=2),
        base.mark_point(filled=True, size=110, opacity=1),
        ring.mark_point(filled=False, size=330, strokeWidth=2, opacity=1).encode(
            color=alt.value(INK)
        ),
        base.mark_text(baseline="top", dy=12).encode(text="label:N", color=alt.value(INK)),
    )
    text = ", ".join(texts)
    return finish(chart, 280, f"Validation perplexity over the dense model's, by round: {text}")


def health_chart(rounds: list[RoundSummary], limits: HealthSettings) -> Chart | None:
    """Draw how much of each health limit every round used; the line at 100 % is the limit.

    Args:
        rounds: the summary's.
        limits: the settings' section ``health``.

    Returns:
        The chart, or None where nothing was measured.
    """
    rows: list[dict[str, Any]] = [
        {
            "round": record.round,
            "measure": use.measure,
            "found": use.found,
            "limit": use.limit,
            "used": 100 * use.share,
        }
        for record in rounds
        if record.health
        for use in uses(record.health, limits)
    ]
    if not rows:
        return None
    names = list(dict.fromkeys(row["round"] for row in rows))
    # A broken round is far beyond: its point is at the edge, and its tooltip has the value.
    edge = min(max(115.0, *(row["used"] for row in rows)), 250.0)
    x = alt.X(
        "used:Q",
        scale=alt.Scale(domain=[0, edge], clamp=True, nice=False),
        title="per cent of the limit",
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("measure:N", sort=None, title=None),
        x=x,
        tooltip=["round:N", "measure:N", "found:N", "limit:N"],
    )
    limit = alt.Chart(alt.Data(values=[{"used": 100}])).mark_rule(color=BAD, strokeDash=[4, 3])
    # The last round is drawn strongest.
    opacities = [0.2 + 0.8 * (place + 1) / len(names) for place in range(len(names))]
    shown = alt.Opacity("round:O", sort=names, title="round", scale=alt.Scale(range=opacities))
    chart = alt.layer(
        limit.encode(x=x),
        base.mark_point(filled=True, size=110, color=ACCENT).encode(opacity=shown),
    )
    measures = len({row["measure"] for row in rows})
    text = ", ".join(
        f"{row['round']} {row['measure']} {row['found']} of {row['limit']}" for row in rows
    )
    return finish(chart, ROW * measures, f"Health of each round and its limits: {text}")


def removed_chart(rounds: list[RoundRecord], dense: RoundRecord) -> Chart | None:
    """Draw the share of each kind of unit that is removed from each layer after each round.

    Args:
        rounds: the round.json of every round, in order.
        dense: the dense model's record.

    Returns:
        The chart, or None where no round has a model.
    """
    done = {record.round: record.widths for record in rounds if record.widths}
    if not done or not dense.widths:
        return None
    cells: list[dict[str, Any]] = [
        {
            "row": f"{NAMES[kind]}, {name}",
            "layer": layer,
            "share": 100 * (1 - left / full),
            "removed": percent(1 - left / full),
            "left": f"{left} of {full} {NAMES[kind]}",
        }
        for kind in NAMES
        for name, widths in done.items()
        for layer, (left, full) in enumerate(
            zip(_units(widths, kind), _units(dense.widths, kind), strict=True)
        )
    ]
    most = max(max(cell["share"] for cell in cells), 1.0)
    layers = len(dense.widths.neurons)
    every = [layer for layer in range(layers) if layer % max(1, layers // 6) == 0]
    chart = (
        alt.Chart(alt.Data(values=cells))
        .mark_rect(color=ACCENT)
        .encode(
            x=alt.X(
                "layer:O", title="layer", axis=alt.Axis(values=every, labelAngle=0), scale=_SPACED
            ),
            y=alt.Y("row:N", sort=None, title=None, scale=_SPACED),
            opacity=_shade("share:Q", most, "removed, per cent", ".0f"),
            tooltip=[alt.Tooltip("row:N", title="kind, round"), "layer:O", "removed:N", "left:N"],
        )
    )
    text = ", ".join(
        f"{name} {span_of(_units(widths, kind))} {NAMES[kind]} per layer"
        for name, widths in done.items()
        for kind in NAMES
    )
    rows = len({cell["row"] for cell in cells})
    return finish(chart, _CELL * rows, f"Units that remain in each layer after each round: {text}")


def agreement_chart(agreement: dict[str, Agreement]) -> Chart | None:
    """Draw how similarly domains rank the neurons of a layer: Spearman correlations, as a matrix.

    Args:
        agreement: of the domains in the delivered round.

    Returns:
        The chart, or None where there is one domain only.
    """
    cells: list[dict[str, Any]] = [
        {
            "domain": name,
            "with": other,
            "rho": rho,
            "value": max(0.0, rho or 0.0),
            "correlation": decimal(rho),
        }
        for name, row in agreement.items()
        for other, rho in row.correlations.items()
    ]
    if not cells:
        return None
    domains = list(agreement)
    most = max(0.01, *(cell["value"] for cell in cells))
    chart = (
        alt.Chart(alt.Data(values=cells))
        .mark_rect(color=ACCENT)
        .encode(
            x=alt.X(
                "with:N", sort=domains, title=None, axis=alt.Axis(labelAngle=-60), scale=_SPACED
            ),
            y=alt.Y("domain:N", sort=domains, title=None, scale=_SPACED),
            opacity=_shade("value:Q", most, "rank correlation", ".2f"),
            tooltip=["domain:N", "with:N", "correlation:N"],
        )
    )
    known = [cell for cell in cells if cell["rho"] is not None]
    text = "undefined"
    if known:
        text = " and ".join(
            f"{word} {cell['correlation']} ({cell['domain']} with {cell['with']})"
            for word, pick in (("lowest", min), ("highest", max))
            for cell in [pick(known, key=itemgetter("rho"))]
        )
    return finish(
        chart,
        _CELL * len(domains),
        f"Rank correlation of the neurons of a layer between domains: {text}",
    )


def recovery_chart(recovery: Recovery | None) -> Chart | None:
    """Draw the held-out and the training loss over the steps of a recovery; None without one."""
    if not recovery:
        return None
    held_out, training = "held-out text", "training"
    rows = [
        {"step": row.step, "loss": loss, "series": name, "value": decimal(loss, 4)}
        for row in recovery.history
        for loss, name in ((row.validation_loss, held_out), (row.train_loss, training))
        if loss is not None
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point={"size": 60, "filled": True}, strokeWidth=2)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("loss:Q", scale=alt.Scale(zero=False), title="loss, nats per token"),
            color=alt.Color(
                "series:N",
                scale=alt.Scale(domain=[held_out, training], range=[ACCENT, SECOND]),
                title=None,
            ),
            tooltip=["series:N", "step:Q", alt.Tooltip("value:N", title="nats per token")],
        )
    )
    text = ", ".join(
        f"step {row['step']} {row['value']}" for row in rows if row["series"] == held_out
    )
    return finish(chart, 240, f"Divergence from the dense model on held-out text: {text}")


def _shade(field: str, most: float, title: str, written: str) -> alt.Opacity:
    """The darker, the more; the legend has three shades, which a phone has room for."""
    shown = [0, most / 2, most]
    return alt.Opacity(
        field,
        scale=alt.Scale(domain=[0, most], range=_SHADES),
        legend=alt.Legend(title=title, values=shown, format=written, symbolType="square"),
    )


def _units(widths: Widths, kind: str) -> list[int]:
    units: list[int] = getattr(widths, kind)
    return units


def _remarks(record: RoundSummary, knee: str | None) -> list[str]:
    """Name what is special about a round."""
    remarks = {"knee": record.round == knee, "unhealthy": record.status == "unhealthy"}
    return [remark for remark, holds in remarks.items() if holds]
