"""Building the table of documents: candidates are written in reading order, then selected.

Only a few rows are in memory: candidates are written to a Parquet file as they are read, and
DuckDB, which spills to disk, selects and sorts them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pandas
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
"""Rows in a row group, the unit that readers load at a time."""
_GROUP_CHARACTERS = 4_000_000
_MEMORY = "256MB"
_THREADS = 2

CANDIDATES = {
    **dict.fromkeys(("seq", "number", *COUNTED), "int64"),
    **dict.fromkeys((*COLUMNS, "text_key", "place", "excerpt"), "string"),
}
"""Columns of the candidates that passed all filters, and their Arrow types."""
REJECTED = {"seq": "int64", **dict.fromkeys(DROPPED_COLUMNS, "string")}
"""Columns of the documents dropped while reading, and their Arrow types."""


@contextmanager
def row_writer(path: Path, columns: dict[str, str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that adds a row to a Parquet file, which is written in row groups."""
    schema = pyarrow.schema(list(columns.items()))
    rows: list[dict[str, Any]] = []
    characters = 0
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            nonlocal characters
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            rows.clear()
            characters = 0

        def add(row: dict[str, Any]) -> None:
            nonlocal characters
            rows.append(row)
            characters += len(row.get("text", ""))
            if len(rows) == ROW_GROUP or characters > _GROUP_CHARACTERS:
                flush()

        yield add
        flush()


@contextmanager
def selection(work: Path) -> Iterator["Selection"]:
    """Open `candidates.parquet` and `dropped.parquet` in `work` for selection.

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
            connection.execute(
                "CREATE TABLE duplicates (number BIGINT, reason VARCHAR, detail VARCHAR)"
            )
            yield Selection(connection)
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{work} has no space for the table ({detail}): free some space") from None


class Selection:
    """Selects candidates step by step: without duplicates, without near-duplicates, sampled."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def drop_equal(self) -> None:
        """Drop candidates equal to an earlier one, ignoring letter case and white space."""
        self._connection.execute(
            """
            INSERT INTO duplicates
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
        """Drop candidates similar to an earlier one; `signatures` has them by number."""
        known = self._connection.sql("SELECT number FROM duplicates").to_arrow_table()
        pairs = signatures.near_duplicates(similarity, known["number"].to_numpy())
        self._connection.register(
            "pairs", pyarrow.table({"later": pairs[:, 0], "earlier": pairs[:, 1]})
        )
        self._connection.execute(
            """
            INSERT INTO duplicates
            SELECT pairs.later, 'near_duplicate', candidates.sha256
            FROM pairs JOIN candidates ON candidates.number = pairs.earlier
            """
        )

    def sample(self, settings: DocumentSettings) -> None:
        """Sample up to `max_per_domain` documents: by hash for the test split, else seeded."""
        validation = max(1, round(settings.max_per_domain * settings.validation_share))
        test = max(1, round(settings.max_per_domain * settings.test_share))
        calibration = max(1, settings.max_per_domain - validation - test)
        self._connection.execute(
            f"""
            CREATE TABLE sampled AS
            SELECT number FROM (
                SELECT number, split, row_number() OVER (
                    PARTITION BY domain, split
                    ORDER BY sha256(
                        CASE split WHEN 'test' THEN 'test' ELSE '{settings.seed:d}' END
                        || ':' || sha256
                    )
                ) AS place
                FROM candidates ANTI JOIN duplicates USING (number)
            )
            WHERE place <= CASE split
                WHEN 'test' THEN {test} WHEN 'validation' THEN {validation} ELSE {calibration}
            END
            """
        )

    def unusable_sources(self) -> list[tuple[str, str, dict[str, int]]]:
        """Domain and name of each source without candidates, and the number of drops by reason."""
        return self._fetch(
            "SELECT domain, source, histogram(reason) FROM dropped "
            "ANTI JOIN candidates USING (domain, source) GROUP BY domain, source ORDER BY ALL"
        )

    def drawn(self) -> pandas.DataFrame:
        """Number of sampled documents and sums of `COUNTED`, by all that the manifest counts by."""
        sums = ", ".join(f"sum({column})::BIGINT AS {column}" for column in COUNTED)
        return self._connection.execute(
            f"SELECT domain, source, licence, language, split, count(*) AS documents, {sums} "
            "FROM candidates SEMI JOIN sampled USING (number) GROUP BY ALL"
        ).df()

    def reasons(self) -> dict[str, dict[str, int]]:
        """Number of documents dropped or not sampled, by domain and reason."""
        return dict(
            self._fetch(
                """
                SELECT domain, histogram(reason) FROM (
                    SELECT domain, reason FROM dropped
                    UNION ALL
                    SELECT domain, duplicates.reason FROM candidates JOIN duplicates USING (number)
                    UNION ALL
                    SELECT domain, 'not_drawn' FROM candidates
                    ANTI JOIN duplicates USING (number) ANTI JOIN sampled USING (number)
                ) GROUP BY domain
                """
            )
        )

    def write_documents(self, path: Path, domains: Iterable[str]) -> None:
        """Write the sampled documents, sorted by domain and sha256."""
        columns = ", ".join(f'"{column}"' for column in COLUMNS)
        # One domain at a time, so that only its text is sorted in memory.
        queries = [
            (
                f"SELECT {columns} FROM candidates SEMI JOIN sampled USING (number) "
                "WHERE domain = ? ORDER BY sha256",
                [domain],
            )
            for domain in sorted(domains)
        ]
        self._write(path, COLUMNS, queries)

    def write_dropped(self, path: Path) -> None:
        """Write the dropped documents, in reading order."""
        columns = ", ".join(DROPPED_COLUMNS)
        query = f"""
            SELECT {columns} FROM (
                SELECT seq, {columns} FROM dropped
                UNION ALL BY NAME
                SELECT seq, domain, source, place, duplicates.reason, duplicates.detail, sha256,
                       excerpt
                FROM candidates JOIN duplicates USING (number)
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
    """Regroup batches of any size into tables of `ROW_GROUP` rows; the last may be smaller."""
    rest = schema.empty_table()
    for batch in batches:
        rest = pyarrow.concat_tables([rest, pyarrow.Table.from_batches([batch]).cast(schema)])
        while rest.num_rows >= ROW_GROUP:
            yield rest.slice(0, ROW_GROUP).combine_chunks()
            rest = rest.slice(ROW_GROUP)
    if rest.num_rows:
        yield rest.combine_chunks()
