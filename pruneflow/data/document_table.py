"""The table of documents on its way to disk: written in reading order, then chosen and sorted.

Nothing is held but a few rows: candidates go to a Parquet file as they come, and DuckDB, which
spills to disk, says which of them stay.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import pyarrow
import pyarrow.parquet

from pruneflow.data.near_duplicates import Signatures
from pruneflow.data.personal_data import KINDS
from pruneflow.errors import InputError
from pruneflow.settings.calibration import DocumentSettings

COLUMNS = ("domain", "source", "licence", "language", "split", "group", "sha256", "text")
DROPPED_COLUMNS = ("domain", "source", "place", "reason", "detail", "sha256", "excerpt")
COUNTED = ("characters", "cut", "repaired", *KINDS)
SPLITS = ("calibration", "validation", "test")

ROW_GROUP = 1000
"""Rows of a row group: what a reader of the table holds at a time."""
_GROUP_CHARACTERS = 4_000_000
_MEMORY = "256MB"
_THREADS = 2

_CANDIDATE = {
    **dict.fromkeys(("seq", "number", *COUNTED), "int64"),
    **dict.fromkeys((*COLUMNS, "text_key", "place", "excerpt"), "string"),
}
_DROPPED = {"seq": "int64", **dict.fromkeys(DROPPED_COLUMNS, "string")}


class Rows:
    """Rows written to a Parquet file, a row group at a time.

    Args:
        path: the file.
        columns: names and Arrow types.
    """

    def __init__(self, path: Path, columns: dict[str, str]) -> None:

        self._schema = pyarrow.schema(list(columns.items()))
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._rows.append(row)
        self._characters += len(row.get("text", ""))
        if len(self._rows) == ROW_GROUP or self._characters > _GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:

        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._characters = [], 0


def candidate_rows(work: Path) -> Rows:
    """Rows of documents that may stay."""
    return Rows(work / "candidates.parquet", _CANDIDATE)


def dropped_rows(work: Path) -> Rows:
    """Rows of documents that were dropped while they were read."""
    return Rows(work / "dropped.parquet", _DROPPED)


@contextmanager
def selection(work: Path) -> Iterator["Selection"]:
    """Open what was written to `work`.

    Raises:
        InputError: the disk is full.
    """
    config: dict[str, Any] = {
        "memory_limit": _MEMORY,
        "threads": _THREADS,
        "temp_directory": str(work / "spilled"),
    }
    try:
        with duckdb.connect(":memory:", config=config) as connection:
            for name in ("candidates", "dropped"):
                connection.read_parquet(str(work / f"{name}.parquet")).create_view(name)
            connection.execute("CREATE TABLE lost (number BIGINT, reason VARCHAR, detail VARCHAR)")
            yield Selection(connection)
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{work} has no room for the table ({detail}): free some space") from None


class Selection:
    """Which candidates stay, decided step by step: equal ones, near-duplicates, the draw."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def drop_equal(self) -> None:
        """Drop candidates that are equal to an earlier one but for case and white space."""
        self._connection.execute(
            """
            INSERT INTO lost
            SELECT later.number, 'duplicate', first.sha256
            FROM candidates AS later
            JOIN (
                SELECT text_key, min(number) AS number, arg_min(sha256, number) AS sha256
                FROM candidates GROUP BY text_key HAVING count(*) > 1
            ) AS first
            ON later.text_key = first.text_key AND later.number > first.number
            """
        )

    def drop_near_duplicates(self, signatures: Signatures, similarity: float) -> None:
        """Drop candidates that are like an earlier one; `signatures` has them by number."""
        lost = self._connection.sql("SELECT number FROM lost").to_arrow_table()
        pairs = signatures.near_duplicates(similarity, lost["number"].to_numpy())
        self._connection.register(
            "pairs", pyarrow.table({"later": pairs[:, 0], "earlier": pairs[:, 1]})
        )
        self._connection.execute(
            """
            INSERT INTO lost
            SELECT pairs.later, 'near_duplicate', candidates.sha256
            FROM pairs JOIN candidates ON candidates.number = pairs.earlier
            """
        )

    def draw(self, settings: DocumentSettings) -> None:
        """Keep at most `max_per_domain` documents: test ones by hash, the others by seeded hash."""
        validation = max(1, round(settings.max_per_domain * settings.validation_share))
        test = max(1, round(settings.max_per_domain * settings.test_share))
        calibration = max(1, settings.max_per_domain - validation - test)
        self._connection.execute(
            f"""
            CREATE TABLE drawn AS
            SELECT number FROM (
                SELECT number, split, row_number() OVER (
                    PARTITION BY domain, split
                    ORDER BY sha256(
                        CASE split WHEN 'test' THEN 'test' ELSE '{settings.seed:d}' END
                        || ':' || sha256
                    )
                ) AS place
                FROM candidates ANTI JOIN lost USING (number)
            )
            WHERE place <= CASE split
                WHEN 'test' THEN {test} WHEN 'validation' THEN {validation} ELSE {calibration}
            END
            """
        )

    def usable(self) -> dict[str, int]:
        """Documents before the draw, by domain."""
        return dict(
            self._fetch(
                "SELECT domain, count(*) FROM candidates ANTI JOIN lost USING (number) "
                "GROUP BY domain"
            )
        )

    def useless(self) -> dict[tuple[str, str], dict[str, int]]:
        """Reasons by domain and source where every document was dropped by itself."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for domain, source, reason, count in self._fetch(
            "SELECT domain, source, reason, count(*) FROM dropped "
            "ANTI JOIN candidates USING (domain, source) GROUP BY ALL ORDER BY ALL"
        ):
            found.setdefault((domain, source), {})[reason] = count
        return found

    def counts(self, by: str) -> dict[str, dict[str, int]]:
        """Documents drawn, by domain and by another column's values in order."""
        found: dict[str, dict[str, int]] = {}
        for domain, value, count in self._fetch(
            f"SELECT domain, {by}, count(*) FROM candidates SEMI JOIN drawn USING (number) "
            "GROUP BY ALL ORDER BY ALL"
        ):
            found.setdefault(domain, {})[value] = count
        return found

    def sums(self) -> dict[str, dict[str, int]]:
        """Sums over the documents drawn of what is counted of each (`COUNTED`), by domain."""
        columns = ", ".join(f"sum({column})" for column in COUNTED)
        rows = self._fetch(
            f"SELECT domain, {columns} FROM candidates SEMI JOIN drawn USING (number) "
            "GROUP BY domain"
        )
        return {domain: dict(zip(COUNTED, map(int, sums), strict=True)) for domain, *sums in rows}

    def sources(self) -> list[tuple[str, str, int, int]]:
        """Domain, source, documents and characters of what was drawn."""
        return self._fetch(
            "SELECT domain, source, count(*), sum(characters)::BIGINT "
            "FROM candidates SEMI JOIN drawn USING (number) GROUP BY ALL ORDER BY ALL"
        )

    def reasons(self) -> dict[str, dict[str, int]]:
        """Documents dropped, by domain and reason."""
        found: dict[str, dict[str, int]] = {}
        for domain, reason, count in self._fetch(
            """
            SELECT domain, reason, count(*) FROM (
                SELECT domain, reason FROM dropped
                UNION ALL
                SELECT domain, lost.reason FROM candidates JOIN lost USING (number)
            ) GROUP BY ALL ORDER BY ALL
            """
        ):
            found.setdefault(domain, {})[reason] = count
        return found

    def write_documents(self, path: Path, domains: Iterable[str]) -> None:
        """Write the documents drawn, sorted by domain and sha256."""
        columns = ", ".join(f'"{column}"' for column in COLUMNS)
        # One domain after the other: no more than its text is sorted at a time.
        queries = [
            (
                f"SELECT {columns} FROM candidates SEMI JOIN drawn USING (number) "
                "WHERE domain = ? ORDER BY sha256",
                [domain],
            )
            for domain in sorted(domains)
        ]
        self._write(path, COLUMNS, queries)

    def write_dropped(self, path: Path) -> None:
        """Write what was dropped, in reading order."""
        columns = ", ".join(DROPPED_COLUMNS)
        query = f"""
            SELECT {columns} FROM (
                SELECT seq, {columns} FROM dropped
                UNION ALL BY NAME
                SELECT seq, domain, source, place, lost.reason, lost.detail, sha256, excerpt
                FROM candidates JOIN lost USING (number)
            ) ORDER BY seq
        """
        self._write(path, DROPPED_COLUMNS, [(query, [])])

    def _fetch(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()

    def _write(
        self, path: Path, columns: tuple[str, ...], queries: list[tuple[str, list[str]]]
    ) -> None:

        schema = pyarrow.schema([(column, pyarrow.string()) for column in columns])
        with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
            batches = (
                batch
                for query, values in queries
                for batch in self._connection.sql(query, params=values).to_arrow_reader(ROW_GROUP)
            )
            for table in _row_groups(batches, schema):
                writer.write_table(table, row_group_size=ROW_GROUP)


def _row_groups(
    batches: Iterable[pyarrow.RecordBatch], schema: pyarrow.Schema
) -> Iterator[pyarrow.Table]:
    """Yield tables of `ROW_GROUP` rows, however many the batches have; the last may have fewer."""
    held = schema.empty_table()
    for batch in batches:
        held = pyarrow.concat_tables([held, pyarrow.Table.from_batches([batch]).cast(schema)])
        while held.num_rows >= ROW_GROUP:
            yield held.slice(0, ROW_GROUP).combine_chunks()
            held = held.slice(ROW_GROUP)
    if held.num_rows:
        yield held.combine_chunks()
