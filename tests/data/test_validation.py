import hashlib

import pyarrow
import pyarrow.parquet
import pytest

from pruneflow.artifacts import read_json, write_manifest
from pruneflow.calibration.documents import TABLE, read_documents
from pruneflow.calibration.validation import validate_documents
from pruneflow.errors import InputError


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def validate(workspace):
    out = workspace.root / "data/calibration/validation.json"
    return validate_documents(workspace.out, workspace.benchmarks, workspace.settings, out)


def rewrite(workspace, table) -> None:
    """Put a table in place with a manifest of its own, as a faulty builder would."""
    converted = pyarrow.Table.from_pandas(table, preserve_index=False)
    pyarrow.parquet.write_table(converted, workspace.out / TABLE)
    write_manifest(workspace.out)


def test_a_good_table_passes_and_the_result_is_the_same_twice(workspace):
    digest = workspace.build()["digest"]
    result = validate(workspace)
    path = workspace.root / "data/calibration/validation.json"
    before = path.read_bytes()
    assert result["success"] is True
    assert result["documents"] == digest
    assert {item["expectation"] for item in result["expectations"]} >= {
        "expect_table_columns_to_match_ordered_list",
        "expect_column_values_to_not_be_null",
        "expect_column_values_to_be_unique",
    }
    assert all(item["success"] for item in result["expectations"] + result["checks"])
    assert validate(workspace) == result == read_json(path)
    assert path.read_bytes() == before


def _null_text(table, question):
    table.loc[3, "text"] = None
    return table


def _missing_licence(table, question):
    table.loc[3, "licence"] = " "
    return table


def _odd_language(table, question):
    table.loc[3, "language"] = "Klingon!"
    return table


def _unknown_split(table, question):
    table.loc[3, "split"] = "train"
    return table


def _short_text(table, question):
    table.loc[3, "text"] = "short"
    return table


def _same_row_twice(table, question):
    table.loc[4] = table.loc[3]
    return table


def _changed_text(table, question):
    table.loc[3, "text"] = table.loc[3, "text"] + " changed"
    return table


def _duplicate_in_another_split(table, question):
    row = table.loc[3].copy()
    row["text"] = row["text"].upper()
    row["sha256"] = sha256(row["text"])
    row["split"] = next(split for split in ("test", "calibration") if split != row["split"])
    table.loc[4] = row
    return table


def _overlap(table, question):
    text = "A short introduction comes first in this row. " + question
    table.loc[3, ["text", "sha256"]] = [text, sha256(text)]
    return table


def _missing_domain(table, question):
    return table[table.domain == "letters"]


def _missing_split(table, question):
    return table[(table.domain == "letters") | (table.split != "validation")]


def _missing_column(table, question):
    return table.drop(columns="licence")


@pytest.mark.parametrize(
    ("poison", "row", "words"),
    [
        (_null_text, 3, "expect_column_values_to_not_be_null on text"),
        (_missing_licence, 3, "expect_column_values_to_match_regex on licence"),
        (_odd_language, 3, "expect_column_values_to_match_regex on language"),
        (_unknown_split, 3, "expect_column_values_to_be_in_set on split"),
        (_short_text, 3, "expect_column_value_lengths_to_be_between on text"),
        (_same_row_twice, 3, "expect_column_values_to_be_unique on sha256"),
        (_changed_text, 3, "sha256_is_of_the_text"),
        (_duplicate_in_another_split, 4, "no_text_in_two_rows"),
        (_overlap, 3, "no_overlap_with_evaluation_questions"),
        (_missing_domain, None, "expect_column_distinct_values_to_equal_set on domain"),
        (_missing_split, None, "domain notes has no document for validation"),
        (_missing_column, None, "expect_table_columns_to_match_ordered_list"),
    ],
)
def test_a_poisoned_table_is_refused_by_name_and_row(workspace, question, poison, row, words):
    workspace.build()
    validate(workspace)
    out = workspace.root / "data/calibration/validation.json"
    before = out.read_bytes()
    table = poison(read_documents(workspace.out), question)
    rewrite(workspace, table)
    with pytest.raises(InputError) as error:
        validate(workspace)
    message = str(error.value)
    assert words in message
    assert "\n" not in message
    if row is not None:
        values = table.loc[row]
        assert f"domain {values['domain']}, source {values['source']}" in message
        assert f"sha256 {values['sha256'][:12]}" in message
    assert out.read_bytes() == before
