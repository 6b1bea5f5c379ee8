import hashlib

import pyarrow
import pyarrow.parquet
import pytest

from pruneflow.artifacts import read_json, write_manifest
from pruneflow.data import expectations
from pruneflow.data.documents import TABLE, read_documents
from pruneflow.data.validation import validate_documents
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.settings.calibration import DocumentSettings


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def validate(workspace):
    out = workspace.root / "data/calibration/validation.json"
    return validate_documents(workspace.out, workspace.benchmarks, workspace.settings, out)


def rewrite(workspace, table, recount=True) -> None:
    """Put a table in place with a manifest that fits it, as a faulty builder would."""
    manifest = read_json(workspace.out / "manifest.json")
    for name, domain in manifest["domains"].items() if recount else ():
        domain["documents"] = int((table["domain"] == name).sum())
    facts = {key: value for key, value in manifest.items() if key not in ("files", "digest")}
    converted = pyarrow.Table.from_pandas(table, preserve_index=False)
    pyarrow.parquet.write_table(converted, workspace.out / TABLE)
    write_manifest(workspace.out, **facts)


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


def _language_of_another_source(table, question):
    table.loc[3, "language"] = "nl"
    return table


def _licence_of_another_source(table, question):
    table.loc[3, "licence"] = "Apache-2.0"
    return table


def _unknown_licence(table, question):
    table.loc[3, "licence"] = "Free as in beer"
    return table


def _group_in_two_splits(table, question):
    other = table.index[(table.index > 3) & (table.split != table.split[3])][0]
    table.loc[other, "group"] = table.loc[3, "group"]
    return table


def _near_duplicate(table, question):
    text = table.loc[3, "text"] + " A word more."
    table.loc[4, ["domain", "source", "licence", "language"]] = table.loc[
        3, ["domain", "source", "licence", "language"]
    ]
    table.loc[4, ["text", "sha256"]] = [text, sha256(text)]
    return table


def _text_of_a_number(table, question):
    table["text"] = range(len(table))
    return table


def _document_too_few(table, question):
    return table.drop(index=table.index[table.split == "calibration"][0])


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


def _german_text(table, question):
    text = "Der Gärtner wartete den ganzen Winter, denn der Boden war noch viel zu hart dafür. " * 3
    table.loc[3, ["text", "sha256"]] = [text, sha256(text)]
    return table


def _address(table, question):
    text = table.loc[3, "text"] + " Write to max@firma.example for more."
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
        (_missing_licence, 3, "expect_column_values_to_be_in_set on licence"),
        (_unknown_licence, 3, "expect_column_values_to_be_in_set on licence"),
        (
            _licence_of_another_source,
            3,
            "expect_column_values_to_be_in_set on licence of the source",
        ),
        (
            _language_of_another_source,
            3,
            "expect_column_values_to_be_in_set on language of the source",
        ),
        (_text_of_a_number, None, "expect_column_values_to_be_in_set on text"),
        (_document_too_few, None, "expect_column_pair_values_to_be_equal on documents and drawn"),
        (_group_in_two_splits, "group", "no_group_in_two_splits"),
        (_near_duplicate, 4, "no_near_duplicates"),
        (_odd_language, 3, "expect_column_values_to_match_regex on language"),
        (_unknown_split, 3, "expect_column_values_to_be_in_set on split"),
        (_short_text, 3, "expect_column_value_lengths_to_be_between on text"),
        (_same_row_twice, 3, "expect_column_values_to_be_unique on sha256"),
        (_changed_text, 3, "sha256_is_of_the_text"),
        (_duplicate_in_another_split, 4, "no_text_in_two_rows"),
        (_overlap, 3, "no_overlap_with_evaluation_questions"),
        (_german_text, 3, "text_is_in_its_language"),
        (_address, 3, "no_personal_data"),
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
    rewrite(workspace, table, recount=poison is not _document_too_few)
    with pytest.raises(InputError) as error:
        validate(workspace)
    message = str(error.value)
    assert words in message
    assert "\n" not in message
    if row == "group":
        row = table.index[table.group == table.loc[3, "group"]][-1]
    if row is not None:
        values = table.loc[row]
        assert f"domain {values['domain']}, source {values['source']}" in message
        assert f"sha256 {values['sha256'][:12]}" in message
    assert out.read_bytes() == before


def test_rows_at_fault_in_any_part_of_a_long_table_are_found(workspace, monkeypatch):
    workspace.build()
    whole = validate(workspace)
    monkeypatch.setattr(expectations, "PART_BYTES", 2000)
    assert validate(workspace) == whole, "parts must add up to the whole"
    table = read_documents(workspace.out)
    for row in (7, 21, 60, 80):
        table.loc[row, "licence"] = "Free as in beer"
    table.loc[50] = table.loc[20]
    rewrite(workspace, table)
    with pytest.raises(InputError) as error:
        validate(workspace)
    message = str(error.value)
    assert "expect_column_values_to_be_unique on sha256 fails (2 rows" in message
    table.loc[50, "sha256"] = sha256("another")
    rewrite(workspace, table)
    with pytest.raises(InputError) as error:
        validate(workspace)
    message = str(error.value)
    assert "expect_column_values_to_be_in_set on licence fails (4 rows" in message
    shown = [message.index(f"sha256 {table.loc[row, 'sha256'][:12]}") for row in (7, 21, 60)]
    assert shown == sorted(shown), "the first rows, in the table's order"
    assert table.loc[80, "sha256"][:12] not in message


def test_a_folder_without_a_table_is_refused(workspace):
    workspace.out.mkdir(parents=True)
    write_manifest(workspace.out)
    with pytest.raises(DamagedArtifactError, match="is not a table of documents"):
        validate(workspace)


def test_near_duplicates_pass_where_the_settings_drop_equal_texts_only(workspace, question):
    workspace.build()
    rewrite(workspace, _near_duplicate(read_documents(workspace.out), question))
    values = {**workspace.settings.model_dump(), "near_duplicate_similarity": 1}
    workspace.settings = DocumentSettings(**values)
    assert validate(workspace)["success"]
