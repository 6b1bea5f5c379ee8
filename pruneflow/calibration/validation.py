"""Whether the table of documents may be used: no model runs on a table that fails here.

Great Expectations checks what can be said of columns; plain functions check what needs two rows
or another file. Both name the rows at fault.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import verify_manifest, write_json
from pruneflow.calibration.documents import COLUMNS, SPLITS, TABLE, duplicate_key, read_documents
from pruneflow.calibration.questions import question_sequences, shared_sequence
from pruneflow.calibration.sources import LANGUAGE
from pruneflow.config import DocumentSettings
from pruneflow.errors import InputError

if TYPE_CHECKING:
    import pandas

SHOWN_ROWS = 3


def validate_documents(
    documents_dir: Path, benchmarks: Path, settings: DocumentSettings, out_json: Path
) -> dict[str, Any]:
    """Check the table of documents and write the result.

    Args:
        documents_dir: folder of the table.
        benchmarks: folder of the evaluation questions.
        settings: the domains and limits that the table must keep to.
        out_json: where the result goes; written only when everything holds.

    Returns:
        `{"success": true, "expectations": [...], "checks": [...], "documents": digest}`.

    Raises:
        InputError: names the first expectation or check that fails and its first rows.
    """
    digest = verify_manifest(documents_dir)["digest"]
    table = read_documents(documents_dir)
    where = documents_dir / TABLE
    expectations = expect(table, settings)
    _refuse_failure(expectations, table, where)
    checks = [
        {"check": name, "success": not rows, "rows": rows}
        for name, rows in run_checks(table, settings, benchmarks).items()
    ]
    _refuse_failure(checks, table, where)
    result = {
        "success": True,
        "expectations": [_without_rows(item) for item in expectations],
        "checks": [_without_rows(item) for item in checks],
        "documents": digest,
    }
    write_json(out_json, result)
    return result


def expect(table: "pandas.DataFrame", settings: DocumentSettings) -> list[dict[str, Any]]:
    """Run Great Expectations over the table.

    Returns:
        For each expectation: `expectation`, `column`, `success`, `observed` (the columns or
        values found, or counts) and `rows`, the positions of rows at fault.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations
    from great_expectations.data_context.types.base import ProgressBarsConfig

    gx = great_expectations.expectations
    # Columns first: what follows would only say that a column is missing.
    wanted: list[Any] = [gx.ExpectTableColumnsToMatchOrderedList(column_list=list(COLUMNS))]
    if list(table.columns) == list(COLUMNS):
        wanted += [gx.ExpectColumnValuesToNotBeNull(column=column) for column in COLUMNS]
        wanted += [
            gx.ExpectColumnDistinctValuesToEqualSet(column="domain", value_set=settings.domains),
            gx.ExpectColumnValuesToBeInSet(column="domain", value_set=settings.domains),
            gx.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
            gx.ExpectColumnValuesToBeUnique(column="sha256"),
            gx.ExpectColumnValuesToMatchRegex(column="sha256", regex=r"^[0-9a-f]{64}$"),
            gx.ExpectColumnValuesToMatchRegex(column="source", regex=r"\S"),
            gx.ExpectColumnValuesToMatchRegex(column="licence", regex=r"\S"),
            gx.ExpectColumnValuesToMatchRegex(column="language", regex=LANGUAGE),
            gx.ExpectColumnValueLengthsToBeBetween(
                column="text",
                min_value=settings.min_characters,
                max_value=settings.max_characters,
            ),
        ]
    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("documents").add_dataframe_asset("documents")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    suite = great_expectations.ExpectationSuite(name="documents", expectations=wanted)
    validated = batch.validate(suite, result_format="COMPLETE")
    # The results come grouped by column, in an order that is not the suite's.
    described = [_describe(result) for result in validated.results]
    order = [(item.expectation_type, getattr(item, "column", None)) for item in wanted]
    return sorted(described, key=lambda item: order.index((item["expectation"], item["column"])))


def run_checks(
    table: "pandas.DataFrame", settings: DocumentSettings, benchmarks: Path
) -> dict[str, list[int]]:
    """Run what a table of expectations cannot say; rows at fault by name of the check.

    Raises:
        InputError: a domain lacks a split (no row could be named for that).
    """
    found = table.groupby("domain")["split"].unique()
    for domain in settings.domains:
        missing = [split for split in SPLITS if split not in found.get(domain, [])]
        if missing:
            raise InputError(
                f"domain_has_every_split fails: domain {domain} has no document for {missing[0]}: "
                f"add text or sources to {domain} in configs/domains.yaml"
            )
    sequences = question_sequences(benchmarks)
    checks: dict[str, Callable[[], list[int]]] = {
        "sha256_is_of_the_text": lambda: _wrong_hash(table),
        "no_text_in_two_rows": lambda: _repeated(table),
        "no_overlap_with_evaluation_questions": lambda: [
            row for row, text in enumerate(table["text"]) if shared_sequence(text, sequences)
        ],
    }
    return {name: check() for name, check in checks.items()}


def _wrong_hash(table: "pandas.DataFrame") -> list[int]:
    pairs = zip(table["text"], table["sha256"], strict=True)
    return [
        row
        for row, (text, sha256) in enumerate(pairs)
        if hashlib.sha256(text.encode()).hexdigest() != sha256
    ]


def _repeated(table: "pandas.DataFrame") -> list[int]:
    """Rows with the text of an earlier row, whatever the split: case and spaces do not count."""
    seen: set[str] = set()
    rows = []
    for row, text in enumerate(table["text"]):
        key = duplicate_key(text)
        if key in seen:
            rows.append(row)
        seen.add(key)
    return rows


def _describe(result: Any) -> dict[str, Any]:
    """Reduce a result to what is the same in every run, and the rows at fault."""
    from great_expectations.exceptions import GreatExpectationsError

    config = result.expectation_config
    if result.exception_info.get("raised_exception"):
        raise GreatExpectationsError(
            f"{config.type} could not run: {result.exception_info['exception_message']}"
        )
    found = result.to_json_dict()["result"]
    counts = ("element_count", "unexpected_count", "missing_count")
    observed = found.get("observed_value")
    if found.get("partial_missing_list"):
        observed = {"missing": found["partial_missing_list"]}
    return {
        "expectation": config.type,
        "column": config.kwargs.get("column"),
        "success": bool(result.success),
        "observed": observed or {name: found[name] for name in counts if name in found},
        "rows": list(found.get("unexpected_index_list") or []),
    }


def _refuse_failure(results: list[dict[str, Any]], table: "pandas.DataFrame", where: Path) -> None:
    failed = next((result for result in results if not result["success"]), None)
    if failed is None:
        return
    name = failed.get("expectation") or failed["check"]
    column = f" on {failed['column']}" if failed.get("column") else ""
    rows = failed["rows"]
    if rows:
        shown = "; ".join(_row(table, row) for row in rows[:SHOWN_ROWS])
        detail = f"{len(rows)} rows, first: {shown}" if len(rows) > 1 else shown
    else:
        detail = f"found {failed.get('observed')}"
    raise InputError(
        f"{where}: {name}{column} fails ({detail}): correct the source in configs/domains.yaml "
        "and run the stage documents again"
    )


def _row(table: "pandas.DataFrame", row: int) -> str:
    values = table.iloc[row]
    text = " ".join(str(values["text"])[:60].split())
    return (
        f"domain {values['domain']}, source {values['source']}, "
        f"sha256 {str(values['sha256'])[:12]}, text {text!r}"
    )


def _without_rows(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "rows"}
