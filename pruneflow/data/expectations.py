"""Great Expectations for the table of documents, validated in parts.

Rows are partitioned by a hash of the column sha256: equal values are in the same part, so "unique"
means unique in the complete table, whatever its size.
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

from pruneflow.data.document_table import COLUMNS, SPLITS
from pruneflow.data.findings import Finding
from pruneflow.data.licences import licence_problem
from pruneflow.data.source_kinds import LANGUAGE
from pruneflow.settings.calibration import DocumentSettings

PART_BYTES = 64 * 2**20
"""Approximate uncompressed size of a part."""

_COUNTS = ("element_count", "unexpected_count", "missing_count")


def expect(table: Path, settings: DocumentSettings, manifest: dict[str, Any]) -> list[Finding]:
    """Validate the table's columns, rows and domains with Great Expectations.

    Args:
        table: the parquet file.
        settings: domains and limits.
        manifest: of the table, with the declared language and licence of each source and the
            number of documents of each domain.

    Returns:
        A finding for each expectation. If the columns are wrong, only theirs: all others would
        fail because of a missing column.
    """
    validator = _Validator()
    findings = validator.run("columns", _types(table), _column_expectations())
    if not all(finding.success for finding in findings):
        return findings
    expectations = _row_expectations(table, settings, manifest)
    rows: list[Finding] = []
    for part in _parts(table):
        found = validator.run("documents", part, expectations)
        for total, finding in zip(rows, found, strict=bool(rows)):
            total.merge(finding)
        rows = rows or found
    domains = validator.run("domains", _shares(table, manifest), _domain_expectations(settings))
    return findings + rows + domains


def _column_expectations() -> list[Any]:
    types = ["string", "large_string"]
    return [
        gx.ExpectTableColumnsToMatchOrderedList(column_list=list(COLUMNS)),
        *(gx.ExpectColumnValuesToBeInSet(column=column, value_set=types) for column in COLUMNS),
    ]


def _row_expectations(
    table: Path, settings: DocumentSettings, manifest: dict[str, Any]
) -> list[Any]:
    declared = {
        key: sorted(
            _declared(domain, name, value)
            for domain, facts in manifest["domains"].items()
            for name, source in facts["sources"].items()
            for value in {source[key], *source[key].split(separator)}
        )
        # Sources with the same name share an entry, which lists the values of all of them.
        for key, separator in (("language", ", "), ("licence", " AND "))
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
            gx.ExpectColumnValuesToBeInSet(column=_source_column(key), value_set=values)
            for key, values in declared.items()
        ),
        gx.ExpectColumnValueLengthsToBeBetween(
            column="text", min_value=settings.min_characters, max_value=settings.max_characters
        ),
    ]


def _domain_expectations(settings: DocumentSettings) -> list[Any]:
    # Every split has at least one document, even where max_per_domain is smaller.
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
    """The Arrow type of every column, as a frame of one row."""
    schema = pyarrow.parquet.read_schema(table)
    return pandas.DataFrame({field.name: [str(field.type)] for field in schema})


def _parts(table: Path) -> Iterator[pandas.DataFrame]:
    """The rows of the table by row number, with the values that their sources should declare."""
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
            # With a named index, Great Expectations would return complete rows with their text.
            frame.index.name = None
            for key in ("language", "licence"):
                frame[_source_column(key)] = _declared(frame["domain"], frame["source"], frame[key])
            yield frame


def _shares(table: Path, manifest: dict[str, Any]) -> pandas.DataFrame:
    """One row per domain: its documents and share, in the table and in the manifest."""
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


def _source_column(key: str) -> str:
    return f"{key} of the source"


def _declared(domain: Any, source: Any, value: Any) -> Any:
    return domain + ", " + source + ": " + value


class _Validator:
    """Great Expectations without files, progress bars or telemetry."""

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        context = great_expectations.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("table").add_dataframe_asset("documents")
        self._batch_definition = asset.add_batch_definition_whole_dataframe("all")

    def run(self, over: str, frame: pandas.DataFrame, expectations: list[Any]) -> list[Finding]:
        """Return a finding for each expectation, in the given order."""
        batch = self._batch_definition.get_batch({"dataframe": frame})
        suite = great_expectations.ExpectationSuite(name=over, expectations=expectations)
        validated = batch.validate(suite, result_format="COMPLETE")
        # Results are grouped by column, not in the order of the suite.
        found = {_key(result.expectation_config): result for result in validated.results}
        return [_finding(over, found[_key(item.configuration)]) for item in expectations]


def _key(config: Any) -> tuple[str, str | None]:
    return config.type, _column(config.kwargs)


def _column(kwargs: dict[str, Any]) -> str | None:
    pair = [kwargs[key] for key in ("column_A", "column_B") if key in kwargs]
    return " and ".join(pair) if pair else kwargs.get("column")


def _finding(over: str, result: Any) -> Finding:
    """Reduce a result to its reproducible parts and the failing rows."""
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
