"""The result on the terminal."""

from typing import TYPE_CHECKING, Any

from pruneflow.reporting.comparison import comparison

if TYPE_CHECKING:
    from rich.table import Table


def result_table(summary: dict[str, Any]) -> "Table":
    """Return dense against pruned: size, perplexity, accuracy with retention, speed."""
    from rich.markup import escape
    from rich.table import Table

    model = summary["model"]
    table = Table(title=escape(f"{model['name']}, {model['delivered']}: dense against pruned"))
    table.add_column("")
    for column in ("dense", "pruned", "change or kept"):
        table.add_column(column, justify="right")
    for section, rows in comparison(summary).items():
        table.add_row(f"[bold]{escape(section)}[/bold]")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        table.add_section()
    return table
