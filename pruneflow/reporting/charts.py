"""Charts as SVG text for the report page: byte for byte the same for the same numbers.

They are drawn in placeholder colours, which become the page's CSS variables, so that one chart
suits a light and a dark page.
"""

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pruneflow.reporting.comparison import kept
from pruneflow.reporting.numbers import NOT_MEASURABLE, decimal, percent, ratio, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, ACCENT, SECOND = "#010203", "#010204", "#010205", "#010206"
CSS = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
}
LINEAR = 10  # perplexity ratio up to which an axis is linear; one broken round would hide the rest
WIDTH = 4.8  # inches; about a phone's width at the page's text size


def perplexity_chart(perplexity: dict[str, Any]) -> str:
    """Draw each domain's perplexity ratio with its interval; the line at 1 is the dense model."""
    ratios = {domain: values["ratio"] for domain, values in perplexity["domains"].items()}
    figure, axes = _figure(0.5 + 0.3 * len(ratios))
    _draw_estimates(axes, ratios, times)
    axes.set_xlabel("perplexity, pruned / dense")
    return _svg(
        figure,
        "perplexity",
        "Perplexity of the pruned model over the dense model's, by domain, with 95 % intervals: "
        + ", ".join(f"{name} {ratio(found)}" for name, found in ratios.items()),
    )


def retention_chart(tasks: dict[str, Any]) -> str:
    """Draw each task's retention with its interval; the line at 100 % is the dense model."""
    retentions = {name: task["retention"] for name, task in tasks.items()}
    figure, axes = _figure(0.5 + 0.3 * len(tasks))
    _draw_estimates(axes, retentions, percent, 100)
    axes.set_xlabel("accuracy kept, per cent of the dense model's")
    return _svg(
        figure,
        "retention",
        "Accuracy kept, with 95 % intervals: "
        + ", ".join(f"{name} {kept(found)}" for name, found in retentions.items()),
    )


def descent_chart(rounds: list[dict[str, Any]], knee: str | None) -> str:
    """Draw validation perplexity over the descent, mean and worst domain, from the dense model.

    Args:
        rounds: the summary's.
        knee: name of the round after which the descent gets steep.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    done = [record for record in rounds if record["mean_ratio"] is not None]
    removed = [0.0, *(100 * record["achieved_ratio"] for record in done)]
    mean = [1.0, *(record["mean_ratio"] for record in done)]
    worst = [1.0, *((record["health"] or {}).get("worst_ratio") for record in done)]
    figure, axes = _figure(2.6)
    axes.plot(removed, mean, "o-", color=ACCENT, markersize=5, label="mean of domains")
    known = [(x, y) for x, y in zip(removed, worst, strict=True) if y is not None]
    axes.plot(*zip(*known, strict=True), "s--", color=SECOND, markersize=5, label="worst domain")
    for x, y, record in zip(removed[1:], mean[1:], done, strict=True):
        axes.annotate(
            record["round"],
            (x, y),
            (0, -8),
            textcoords="offset points",
            ha="center",
            va="top",
            color=INK,
        )
    remarks = [_remarks(record, knee) for record in done]
    for remark, marker in (("knee", "o"), ("unhealthy", "x")):
        marked = [
            point
            for *point, said in zip(removed[1:], mean[1:], remarks, strict=True)
            if remark in said
        ]
        if marked:
            axes.plot(
                *zip(*marked, strict=True),
                marker,
                markersize=11,
                markerfacecolor="none",
                color=INK,
                label=remark,
            )
    if max(y for _, y in known) > LINEAR:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("block weights removed, per cent")
    axes.set_ylabel("perplexity, pruned / dense")
    axes.margins(0.08, 0.18)
    axes.legend(frameon=False, labelcolor=INK, loc="upper left")
    return _svg(
        figure,
        "descent",
        "Validation perplexity over the dense model's, by round: "
        + ", ".join(
            f"{' '.join([record['round'], *said])} at {percent(record['achieved_ratio'])} removed: "
            f"mean {times(record['mean_ratio'])}, worst {decimal(worst_ratio)}"
            for record, said, worst_ratio in zip(done, remarks, worst[1:], strict=True)
        ),
    )


def widths_chart(rounds: list[dict[str, Any]]) -> str:
    """Draw how many neurons and key-value groups each layer has left after each round."""
    from matplotlib.ticker import MaxNLocator

    done = [record for record in rounds if record.get("widths")]
    figure, _ = _figure(3.2, rows=2)
    described = []
    for axes, key, label in zip(
        figure.axes, ("neurons", "kv_groups"), ("neurons", "KV groups"), strict=True
    ):
        for number, record in enumerate(done, start=1):
            widths = record["widths"][key]
            last = number == len(done)
            axes.step(
                range(len(widths)),
                widths,
                where="mid",
                color=ACCENT if last else SECOND,
                linewidth=2 if last else 1,
                alpha=1 if last else 0.3 + 0.6 * number / len(done),
                label=record["round"],
            )
            span = f"{min(widths)} to {max(widths)}" if min(widths) < max(widths) else widths[0]
            described.append(f"{record['round']} {span} {label} a layer")
        axes.set_ylim(0, 1.15 * max(max(record["widths"][key]) for record in done))
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.axes[0].legend(frameon=False, labelcolor=INK, loc="lower left", ncols=6)
    figure.axes[1].set_xlabel("layer")
    return _svg(figure, "widths", "Widths of layers: " + ", ".join(described))


def _figure(height: float, rows: int = 1) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    for row in range(rows):
        axes = figure.add_subplot(rows, 1, row + 1)
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(color=MUTED, labelcolor=INK)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
    return figure, figure.axes[0]


def _draw_estimates(
    axes: "Axes",
    estimates: dict[str, dict[str, Any] | None],
    write: Callable[[float], str],
    scale: float = 1,
) -> None:
    """Draw a row for each estimate: its number and interval beside the line where both are equal.

    Args:
        axes: to draw on.
        estimates: by name; None where there is no measurement.
        write: writes the number.
        scale: what the axis counts in one.
    """
    reach = [scale]
    for row, found in enumerate(estimates.values()):
        if found is None:
            place = ("axes fraction", "data")
            axes.annotate(NOT_MEASURABLE, (0.02, row), xycoords=place, va="center", color=MUTED)
            continue
        value = scale * found["value"]
        low, high = (value if end is None else scale * end for end in (found["low"], found["high"]))
        axes.hlines(row, low, high, color=ACCENT, linewidth=2)
        axes.plot(value, row, "o", color=ACCENT, markersize=6)
        axes.annotate(
            write(found["value"]),
            (high, row),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
        reach += [low, high]
    axes.axvline(scale, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(estimates)), list(estimates))
    axes.set_ylim(len(estimates) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    # Room on the right for the number beside the longest interval.
    span = max(max(reach) - min(reach), 0.1 * scale)
    axes.set_xlim(min(reach) - 0.06 * span, max(reach) + 0.22 * span)


def _remarks(record: dict[str, Any], knee: str | None) -> list[str]:
    """Say what is remarkable about a round."""
    remarks = {"knee": record["round"] == knee, "unhealthy": record["status"] == "unhealthy"}
    return [remark for remark, holds in remarks.items() if holds]


def _svg(figure: "Figure", name: str, description: str) -> str:
    """Write a figure as an inline SVG element with a text alternative and no link outside."""
    import html

    import matplotlib

    stream = io.StringIO()
    # A salt of its own keeps the ids of two charts on one page apart.
    with matplotlib.rc_context(
        {"svg.hashsalt": f"pruneflow-{name}", "svg.fonttype": "none", "font.size": 10}
    ):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 sans-serif", text)
    for colour, css in CSS.items():
        text = text.replace(colour, css)
    label = html.escape(description, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()
