"""Charts of accuracy, perplexity and speed relative to the dense model."""

from collections.abc import Callable, Mapping
from typing import Any

import altair as alt

from pruneflow.judge.compare import PerplexityComparison, TaskComparison
from pruneflow.judge.intervals import Estimate
from pruneflow.judge.metrics import estimate_of
from pruneflow.measure.latency_record import Timing
from pruneflow.report.chart_style import ACCENT, INK, LINE, MUTED, ROW, SECOND, Chart, finish
from pruneflow.report.number_format import (
    NOT_MEASURABLE,
    Figure,
    decimal,
    ratio,
    share,
)

WIDEST = 250  # per cent of accuracy kept; few questions give intervals of many hundred


def retention_chart(tasks: dict[str, TaskComparison]) -> Chart:
    """Draw each task's retention with its interval; the line at 100 % is the dense model."""
    return _estimates(
        {name: task.retention for name, task in tasks.items()},
        share,
        {
            name: {"dense": str(share(task.dense)), "pruned": str(share(task.pruned))}
            for name, task in tasks.items()
        },
        row="task",
        axis="accuracy kept, per cent",
        scale=100,
        description="Accuracy kept, with 95 % intervals: ",
        widest=WIDEST,
    )


def ratio_chart(perplexity: PerplexityComparison) -> Chart:
    """Draw each domain's perplexity ratio with its interval; the line at 1 is the dense model."""
    return _estimates(
        {name: domain.ratio for name, domain in perplexity.domains.items()},
        ratio,
        {
            name: {"dense": decimal(domain.dense), "pruned": decimal(domain.pruned)}
            for name, domain in perplexity.domains.items()
        },
        row="domain",
        axis="perplexity, pruned / dense",
        scale=1,
        description="Perplexity of the pruned model over the dense model's, by domain, with 95 % "
        "intervals: ",
    )


def speedup_chart(latency: Timing) -> Chart:
    """Draw how many times as fast the pruned model is; the line at 1 is the dense model."""
    speedup = latency.speedup
    found = {
        "prefill": estimate_of(speedup.prefill),
        "decode": estimate_of(speedup.decode),
        "first token": estimate_of(speedup.first_token),
    }
    return _estimates(
        found,
        ratio,
        {},
        row="measure",
        axis="times as fast as the dense model",
        scale=1,
        description="Speed of the pruned model over the dense model's, with 95 % intervals: ",
    )


def perplexity_chart(perplexity: PerplexityComparison) -> Chart:
    """Draw each domain's perplexity of both models, joined by a line."""
    domains = perplexity.domains
    rows: list[dict[str, str | float]] = [
        {
            "domain": name,
            "dense value": domain.dense,
            "pruned value": domain.pruned,
            "dense": decimal(domain.dense),
            "pruned": decimal(domain.pruned),
            "ratio": str(ratio(domain.ratio)),
        }
        for name, domain in domains.items()
    ]
    points = [
        {**row, "model": model, "perplexity": row[f"{model} value"]}
        for row in rows
        for model in ("dense", "pruned")
    ]
    y = alt.Y("domain:N", sort=None, title=None)
    start, x = (
        alt.X(
            f"{key}:Q",
            scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(values=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], format="~g"),
            title="perplexity (lower is better)",
        )
        for key in ("dense value", "perplexity")
    )
    tooltip = ["domain:N", "dense:N", "pruned:N", "ratio:N"]
    joined = alt.Chart(alt.Data(values=rows)).mark_rule(strokeWidth=12, opacity=0.25, color=MUTED)
    drawn = alt.Chart(alt.Data(values=points)).mark_point(filled=True, size=90, opacity=1)
    chart = alt.layer(
        joined.encode(y=y, x=start, x2="pruned value:Q", tooltip=tooltip),
        drawn.encode(
            y=y,
            x=x,
            color=alt.Color("model:N", scale=alt.Scale(range=[SECOND, ACCENT]), title=None),
            shape=alt.Shape("model:N", scale=alt.Scale(range=["square", "circle"]), title=None),
            tooltip=tooltip,
        ),
    )
    text = ", ".join(
        f"{name} {decimal(domain.dense)} and {decimal(domain.pruned)}"
        for name, domain in domains.items()
    )
    return finish(
        chart, ROW * len(rows), f"Perplexity of the dense and the pruned model by domain: {text}"
    )


def _estimates(
    estimates: Mapping[str, Estimate | None],
    figure: Callable[[Estimate | None], Figure],
    more: Mapping[str, dict[str, str]],
    *,
    row: str,
    axis: str,
    scale: float,
    description: str,
    widest: float | None = None,
) -> Chart:
    """Draw a row for each estimate: a point, its interval, its number.

    Args:
        estimates: by name; None where there is no measurement.
        figure: writes an estimate with its interval.
        more: further lines of the tooltip, by name.
        row: what a row is.
        axis: title of the axis.
        scale: units of the axis in 1, where both models are equal.
        description: beginning of the description.
        widest: where on the axis an interval is cut off that would hide the others.
    """
    rows: list[dict[str, Any]] = []
    reach = [scale]
    for name, found in estimates.items():
        labels = {row: name, **more.get(name, {})}
        if found is None:
            rows.append({**labels, "kept": NOT_MEASURABLE, "nothing": NOT_MEASURABLE})
            continue
        shown, value = figure(found), scale * found["value"]
        ends = [value if end is None else scale * end for end in (found["low"], found["high"])]
        reach += ends
        numbers = {"value": value, "low": ends[0], "high": ends[1], "label": shown.value}
        rows.append({**labels, "kept": str(shown), "nothing": "", **numbers})
    if widest is not None:
        edge = max([widest, *(each.get("value", widest) for each in rows)])
        reach = [min(value, edge) for value in reach]
        for each in rows:
            each |= {"high": min(each["high"], edge)} if "high" in each else {}
    # Room on the right for the number next to the longest interval.
    span = max(max(reach) - min(reach), 0.1 * scale)
    ends = [min(reach) - 0.05 * span, max(reach) + 0.3 * span]
    for each in rows:
        each |= {"from": ends[0], "to": ends[1]}
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y(f"{row}:N", sort=None, title=None))
    scaled = alt.Scale(domain=ends, nice=False, zero=False)
    x, low, high, left = (
        # The same title on every layer: an axis names all that differ.
        alt.X(f"{key}:Q", scale=scaled, title=axis, axis=alt.Axis(tickCount=6))
        for key in ("value", "low", "high", "from")
    )
    named = [row, *(key for key in ("dense", "pruned") if any(key in each for each in rows))]
    tooltip = [f"{key}:N" for key in named]
    kept = alt.Tooltip("kept:N", title="pruned / dense")
    equal = alt.Chart(alt.Data(values=[{"value": scale}])).mark_rule(color=INK, strokeDash=[4, 3])
    chart = alt.layer(
        equal.encode(x=x),
        base.mark_rule(strokeWidth=3, color=ACCENT).encode(x=low, x2="high:Q"),
        base.mark_point(filled=True, size=90, opacity=1, color=ACCENT).encode(x=x),
        base.mark_text(align="left", dx=8).encode(x=high, text="label:N"),
        base.mark_text(align="left", dx=4, color=MUTED).encode(x=left, text="nothing:N"),
        # The tooltip appears anywhere on the row.
        base.mark_bar(opacity=0, color=LINE).encode(x=left, x2="to:Q", tooltip=[*tooltip, kept]),
    )
    text = ", ".join(f"{each[row]} {each['kept']}" for each in rows)
    return finish(chart, ROW * len(rows), description + text)
