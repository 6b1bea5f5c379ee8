"""The result on the terminal."""

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from pruneflow.judge.summary import Summary
from pruneflow.report.comparison_table import comparison

CAPTION = (
    "In brackets: 95 % intervals. Lower perplexity is better. Speed changes by \u00d7: above 1 the "
    "pruned model is faster."
)


def result_table(summary: Summary) -> Table:
    """Return dense and pruned: size, perplexity, accuracy with retention, speed.

    It fits a terminal of 80 columns.
    """
    title = f"{summary.model.name}, {summary.model.delivered}: dense and pruned"
    table = Table(title=escape(title), caption=CAPTION, show_edge=False)
    add_sections(table, ("dense", "pruned"), comparison(summary))
    return table


def add_sections(
    table: Table, models: tuple[str, str], sections: Mapping[str, Sequence[Sequence[str]]]
) -> None:
    """Add the columns of two models and what changed, and the sections that are not empty."""
    table.add_column("")
    for column in (*models, "change or kept"):
        table.add_column(escape(column), justify="right", overflow="fold")
    for section, rows in sections.items():
        if rows:
            table.add_row(f"[bold]{escape(section)}[/bold]")
            for row in rows:
                table.add_row(*(escape(cell) for cell in row))
            table.add_section()
