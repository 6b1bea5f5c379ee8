"""The style of all charts, and their way onto the page.

A chart is a Vega-Lite specification (made with Altair) that the page's own copy of Vega draws. Its
colours are the page's CSS variables, so that it follows the page from light to dark and onto paper.
"""

from functools import cache
from typing import Any, NamedTuple

import altair as alt
import vl_convert

INK, MUTED, LINE = "var(--ink)", "var(--muted)", "var(--line)"
ACCENT, SECOND, BAD = "var(--accent)", "var(--second)", "var(--bad)"
ROW = 26  # pixels of a row of a chart; a finger finds it

_CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": MUTED,
        "domainColor": LINE,
        "tickColor": LINE,
        "gridColor": LINE,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 130,
    },
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "titleColor": MUTED,
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelColor": INK,
        "labelFontSize": 12,
        "symbolStrokeColor": LINE,
    },
    "text": {"color": INK, "fontSize": 12},
}


class Chart(NamedTuple):
    """A chart on the page.

    Attributes:
        spec: the Vega-Lite specification.
        description: a text alternative.
    """

    spec: dict[str, Any]
    description: str


def finish(
    chart: alt.Chart | alt.LayerChart | alt.FacetChart, height: int, description: str
) -> Chart:
    """Give a chart the style of the page: full width, `height` pixels high."""
    sized = chart.properties(
        width="container",
        height=height,
        description=description,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )
    spec = {key: value for key, value in sized.to_dict().items() if key != "$schema"}
    return Chart({**spec, "config": _CONFIG}, description)


@cache
def library() -> str:
    """Return the JavaScript that draws charts (Vega, Vega-Lite and Vega-Embed), for inlining."""
    major_minor = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", major_minor)
