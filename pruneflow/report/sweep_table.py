"""The recipes of a sweep side by side, on the terminal and on Prefect's page."""

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from pruneflow.judge.pareto import Figures, Row
from pruneflow.report.comparison_table import kept
from pruneflow.report.number_format import Figure, count, percent, ratio

CAPTION = (
    "* Pareto-optimal: no other recipe is at least as good in perplexity, parameters and speed, "
    "and better in one. All relative to the dense model: below parameters the share of block "
    "weights removed, elsewhere 95 % intervals. Lower perplexity and higher speed are better."
)


def sweep_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return a line for each recipe, by column, ready to print."""
    return [
        {
            "recipe": _name(row),
            **{column: str(figure) for column, figure in _cells(row["figures"]).items()},
            "error": row["error"] or "",
        }
        for row in rows
    ]


def sweep_table(rows: Sequence[Row]) -> Table:
    """Return the table for a terminal of 80 columns; the caption lists failures."""
    failed = [f"{row['recipe']} failed: {row['error']}" for row in rows if row["error"]]
    caption = "\n".join([CAPTION, *failed])
    table = Table(title="Recipes", caption=escape(caption), box=None, collapse_padding=True)
    table.add_column("recipe", overflow="fold")
    for column in _cells(None):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = (f"{cell.value}\n{cell.note}" for cell in _cells(row["figures"]).values())
        table.add_row(escape(_name(row)), *cells)
    return table


def _name(row: Row) -> str:
    return f"{row['recipe']} *" if row["pareto"] else row["recipe"]


def _cells(figures: Figures | None) -> Mapping[str, Figure]:
    if figures is None:
        names = ("parameters", "perplexity", "tasks kept", "prefill", "decode")
        return dict.fromkeys(names, Figure("", ""))
    return {
        "parameters": Figure(
            count(figures["parameters"]), f"\u2212{percent(figures['block_ratio'])}"
        ),
        "perplexity": ratio(figures["perplexity_ratio"]),
        "tasks kept": kept(figures["task_retention"]),
        "prefill": ratio(figures["prefill"]),
        "decode": ratio(figures["decode"]),
    }
