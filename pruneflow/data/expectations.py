"""Great Expectations over the table of documents, a part of the table at a time.

The parts are drawn by a hash of the column sha256, so that equal values meet in one part and
"unique" means unique in the whole table, however long it is.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import great_expectations
import pandas
import pyarrow.parquet
from great_expectations import expectations as gx
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.exceptions import GreatExpectationsError

from pruneflow.data.documents import COLUMNS, SPLITS
from pruneflow.data.findings import Finding
from pruneflow.data.licences import licence_problem
from pruneflow.data.sources import LANGUAGE
from pruneflow.settings.calibration import DocumentSettings

PART_BYTES = 64 * 2**20
"""About how much of the table, uncompressed, is looked at in one go."""

_COUNTS = ("element_count", "unexpected_count", "missing_count")


def expect(table: Path, settings: DocumentSettings, manifest: dict[str, Any]) -> list[Finding]:
    """Run Great Expectations over the table's columns, its rows and its domains.

    Args:
        table: the parquet file.
        settings: domains and limits.
        manifest: of the table: the language and licence that each source declares, and how many
            documents were drawn of each domain.

    Returns:
        A finding for each expectation. Columns come first, and alone where they are not as they
        should be, for what follows would only say that a column is missing.
    """
    validator = _Validator()
    findings = validator.run("columns", _types(table), _of_columns())
    if not all(finding.success for finding in findings):
        return findings
    wanted = _of_rows(table, settings, manifest)
    rows: list[Finding] = []
    for part in _parts(table):
        found = validator.run("documents", part, wanted)
        for whole, finding in zip(rows, found, strict=bool(rows)):
            whole.merge(finding)
        rows = rows or found
    return (
        findings + rows + validator.run("domains", _shares(table, manifest), _of_domains(settings))
    )


def _of_columns() -> list[Any]:

    types = ["string", "large_string"]
    return [
        gx.ExpectTableColumnsToMatchOrderedList(column_list=list(COLUMNS)),
        *(gx.ExpectColumnValuesToBeInSet(column=column, value_set=types) for column in COLUMNS),
    ]


def _of_rows(table: Path, settings: DocumentSettings, manifest: dict[str, Any]) -> list[Any]:

    declared = {
        key: sorted(
            _declared(domain, name, value)
            for domain, facts in manifest["domains"].items()
            for name, source in facts["sources"].items()
            for value in {source[key], *source[key].split(between)}
        )
        # Sources of one name are one entry, which has what each of them declares.
        for key, between in (("language", ", "), ("licence", " AND "))
    }
    return [
        *(gx.ExpectColumnValuesToNotBeNull(column=column) for column in COLUMNS),
        gx.ExpectColumnValuesToBeInSet(column="domain", value_set=settings.domains),
        gx.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
        gx.ExpectColumnValuesToBeUnique(column="sha256"),
        gx.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
        gx.ExpectColumnValuesToMatchRegex(column="group", regex="^[0-9a-f]{16}$"),
        gx.ExpectColumnValuesToMatchRegex(column="source", regex=r"\S"),
        gx.ExpectColumnValuesToBeInSet(column="licence", value_set=_known_licences(table)),
        gx.ExpectColumnValuesToMatchRegex(column="language", regex=LANGUAGE),
        *(
            gx.ExpectColumnValuesToBeInSet(column=_of_source(key), value_set=values)
            for key, values in declared.items()
        ),
        gx.ExpectColumnValueLengthsToBeBetween(
            column="text", min_value=settings.min_characters, max_value=settings.max_characters
        ),
    ]


def _of_domains(settings: DocumentSettings) -> list[Any]:

    # Every split has one document at least, even where so few are asked for.
    most = max(settings.max_per_domain, len(SPLITS))
    return [
        gx.ExpectColumnDistinctValuesToEqualSet(column="domain", value_set=settings.domains),
        gx.ExpectColumnValuesToBeBetween(
            column="documents", min_value=settings.min_per_domain, max_value=most
        ),
        gx.ExpectColumnPairValuesToBeEqual(column_A="documents", column_B="drawn"),
        gx.ExpectColumnPairValuesToBeEqual(column_A="share", column_B="drawn_share"),
    ]


def _types(table: Path) -> pandas.DataFrame:
    """One row: the type of every column, under its name."""
    schema = pyarrow.parquet.read_schema(table)
    return pandas.DataFrame({field.name: [str(field.type)] for field in schema})


def _parts(table: Path) -> Iterator[pandas.DataFrame]:
    """The rows of the table by their number, each with what its source should declare."""
    groups = pyarrow.parquet.read_metadata(table)
    size = sum(groups.row_group(index).total_byte_size for index in range(groups.num_row_groups))
    parts = max(1, math.ceil(size / PART_BYTES))
    with duckdb.connect(config={"memory_limit": "512MB", "threads": 1}) as connection:
        for part in range(parts):
            rows = connection.sql(
                "SELECT * FROM read_parquet(?, file_row_number = true) WHERE hash(sha256) % ? = ?",
                params=[str(table), parts, part],
            )
            frame = rows.to_arrow_table().to_pandas().set_index("file_row_number")
            # Great Expectations would give rows of a named index as records with all their text.
            frame.index.name = None
            for key in ("language", "licence"):
                frame[_of_source(key)] = _declared(frame["domain"], frame["source"], frame[key])
            yield frame


def _shares(table: Path, manifest: dict[str, Any]) -> pandas.DataFrame:
    """A row for each domain: its documents and share in the table and as they were drawn."""
    domains = pyarrow.parquet.read_table(table, columns=["domain"])["domain"]
    counts = {str(pair["values"]): pair["counts"] for pair in domains.value_counts().to_pylist()}
    drawn = {name: facts["documents"] for name, facts in manifest["domains"].items()}
    frame = pandas.DataFrame(sorted(counts.items()), columns=["domain", "documents"])
    frame["drawn"] = [drawn.get(name, 0) for name in frame["domain"]]
    frame["share"] = frame["documents"] / max(1, frame["documents"].sum())
    frame["drawn_share"] = frame["drawn"] / max(1, frame["drawn"].sum())
    return frame


def _known_licences(table: Path) -> list[str]:
    """The licences in the table that are SPDX expressions."""
    found = pyarrow.parquet.read_table(table, columns=["licence"])["licence"].unique()
    return sorted(value for value in found.to_pylist() if value and licence_problem(value) is None)


def _of_source(key: str) -> str:
    return f"{key} of the source"


def _declared(domain: Any, source: Any, value: Any) -> Any:
    return domain + ", " + source + ": " + value


class _Validator:
    """Great Expectations without files, progress bars or messages home."""

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"

        context = great_expectations.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("table").add_dataframe_asset("documents")
        self._whole = asset.add_batch_definition_whole_dataframe("all")

    def run(self, over: str, frame: pandas.DataFrame, wanted: list[Any]) -> list[Finding]:
        """Return a finding for each expectation, in the order given."""
        batch = self._whole.get_batch({"dataframe": frame})
        suite = great_expectations.ExpectationSuite(name=over, expectations=wanted)
        validated = batch.validate(suite, result_format="COMPLETE")
        # The results come grouped by column, in an order that is not the suite's.
        found = {_key(result.expectation_config): result for result in validated.results}
        return [_finding(over, found[_key(item.configuration)]) for item in wanted]


def _key(config: Any) -> tuple[str, str | None]:
    return config.type, _column(config.kwargs)


def _column(kwargs: dict[str, Any]) -> str | None:
    pair = [kwargs[key] for key in ("column_A", "column_B") if key in kwargs]
    return " and ".join(pair) if pair else kwargs.get("column")


def _finding(over: str, result: Any) -> Finding:
    """Reduce a result to what is the same in every run, and the rows at fault."""
    config = result.expectation_config
    if result.exception_info.get("raised_exception"):
        raise GreatExpectationsError(
            f"{config.type} could not run: {result.exception_info['exception_message']}"
        )
    found = result.to_json_dict()["result"]
    observed = {name: found[name] for name in _COUNTS if name in found}
    if found.get("observed_value") is not None:
        observed = {"values": found["observed_value"]}
    finding = Finding(config.type, over, _column(config.kwargs), bool(result.success), observed)
    if over == "documents":
        finding.add((int(row), "") for row in found.get("unexpected_index_list") or [])
    elif not result.success:
        finding.observed = observed | {"unexpected": found.get("partial_unexpected_list")}
    return finding
