"""Results of validation: each expectation or check, with its first failing rows."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import duckdb

from pruneflow.errors import InputError

SHOWN_ROWS = 3


@dataclass
class Finding:
    """The result of one expectation or check on the complete table.

    Attributes:
        name: of the expectation or check.
        over: what is checked: `documents` (rows of the table), `domains` or `columns`.
        column: the checked column, if it is a single one.
        success: whether it passed.
        observed: counts, or the observed values if no rows are counted.
        rows: number of failing rows.
        first: the first of them, as pairs of row number and detail.
    """

    name: str
    over: str
    column: str | None = None
    success: bool = True
    observed: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)

    def add(self, rows: Iterable[tuple[int, str]]) -> None:
        """Add failing rows, each with a detail that may be empty, in any order."""
        found = list(rows)
        self.rows += len(found)
        self.success = self.success and not found
        self.first = sorted([*self.first, *found])[:SHOWN_ROWS]

    def merge(self, other: Self) -> None:
        """Add the result of the same expectation on another part of the table."""
        self.success = self.success and other.success
        self.observed = {name: self.observed[name] + other.observed[name] for name in self.observed}
        self.rows += other.rows
        self.first = sorted([*self.first, *other.first])[:SHOWN_ROWS]

    def report(self, kind: str) -> dict[str, Any]:
        """Return the finding as a record of the result file, with its name under the key `kind`."""
        return {
            kind: self.name,
            "over": self.over,
            "column": self.column,
            "success": self.success,
            "observed": self.observed,
        }


def raise_on_failure(findings: list[Finding], table: Path) -> None:
    """Check that all expectations and checks passed.

    Raises:
        InputError: names the first failure and its first rows.
    """
    failed = next((finding for finding in findings if not finding.success), None)
    if failed is None:
        return
    column = f" on {failed.column}" if failed.column else ""
    if failed.rows:
        shown = "; ".join(_described(table, failed.first))
        detail = f"{failed.rows} rows, first: {shown}" if failed.rows > 1 else shown
    else:
        detail = f"found {failed.observed}"
    raise InputError(
        f"{table}: {failed.name}{column} fails ({detail}): correct the source in "
        "configs/domains.yaml and run the stage documents again"
    )


def _described(table: Path, rows: list[tuple[int, str]]) -> Iterator[str]:
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT file_row_number, domain, source, left(sha256, 12), left(text, 60) "
            "FROM read_parquet(?, file_row_number = true) "
            "WHERE file_row_number IN (SELECT unnest(?))",
            [str(table), [row for row, _ in rows]],
        ).fetchall()
    by_number = {number: values for number, *values in found}
    for row, detail in rows:
        domain, source, sha256, text = by_number[row]
        excerpt = " ".join(str(text).split())
        shown = f"domain {domain}, source {source}, sha256 {sha256}, text {excerpt!r}"
        yield f"{shown}, {detail}" if detail else shown
