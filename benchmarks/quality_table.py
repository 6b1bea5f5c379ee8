"""The results table: resume, merge and print it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_v1 import HELD_OUT
from pruneflow.artifacts import read_json
from pruneflow.errors import InputError
from pruneflow.judge.retention import geometric_mean, perplexity_ratios, worst_ratio


def continued(out: Path, setup: dict[str, Any]) -> dict[str, Any]:
    """Rows of an interrupted run; failed rows are measured again.

    Raises:
        InputError: the file has a table with another setup.
    """
    if not out.exists():
        return {"machines": [], "rows": []}
    found = read_json(out)
    if found.get("setup") != setup:
        raise InputError(f"{out} has results of another setup: give another --out or delete it")
    found["rows"] = [row for row in found["rows"] if "error" not in row]
    return dict(found)


def with_ratios(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Compare every row with the dense one, and sort by ratio, then in the order of `names`."""
    dense = next((row for row in rows if row["row"] == "dense" and "perplexity" in row), None)
    for row in rows:
        if dense and "perplexity" in row:
            ratios = perplexity_ratios(dense["perplexity"], row["perplexity"])
            row["perplexity_ratio"] = ratios
            row["perplexity_ratio_mean"] = geometric_mean(ratios)
            row["perplexity_ratio_worst"] = list(worst_ratio(ratios))
    order = {name: index for index, name in enumerate(names)}
    return sorted(
        rows, key=lambda row: (row["ratio"], order.get(row["row"].split()[0], len(order)))
    )


def merge(files: list[Path], names: Sequence[str]) -> dict[str, Any]:
    """Merge results of the same setup; of rows with the same name and ratio the first is kept.

    Raises:
        InputError: the setups differ.
    """
    tables = [read_json(path) for path in files]
    machines: list[Any] = []
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    for path, table in zip(files, tables, strict=True):
        if table["setup"] != tables[0]["setup"]:
            raise InputError(f"{path} has another setup than {files[0]}: merge results of the same")
        machines += [machine for machine in table["machines"] if machine not in machines]
        for row in table["rows"]:
            key = (row["row"], row["ratio"])
            if key not in rows or "error" in rows[key]:
                rows[key] = row
    ordered = with_ratios(list(rows.values()), names)
    return {"setup": tables[0]["setup"], "machines": machines, "rows": ordered}


def show(table: dict[str, Any]) -> None:
    """Print the table, with rich if it is installed."""
    heading = ["row", "ratio", "achieved", "params M", "mean", *HELD_OUT, "s", "GiB"]
    lines = [_cells(row) for row in table["rows"]]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in [heading, *lines]:
            print("  ".join(f"{cell:>12}" for cell in line))
        return
    grid = Table(*heading, caption="perplexity over the dense model's; the dense row is perplexity")
    for line in lines:
        grid.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 160).print(grid)


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["row"], f"{row['ratio']:g}", row["error"][:60]]
    dense = row["row"] == "dense"
    sets = row["perplexity"] if dense else row["perplexity_ratio"]
    return [
        row["row"],
        f"{row['ratio']:g}",
        f"{row['achieved']:.4f}",
        f"{row['parameters'] / 1e6:.1f}",
        f"{row['perplexity_ratio_mean']:.3f}",
        *(f"{sets[s]['perplexity'] if dense else sets[s]:.2f}" for s in HELD_OUT),
        f"{row['seconds']:.0f}",
        "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}",
    ]
