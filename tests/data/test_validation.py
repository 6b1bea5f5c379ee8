import hashlib

import pyarrow
import pyarrow.parquet
import pytest

from pruneflow.artifacts import read_json, write_manifest
from pruneflow.data import expectations
from pruneflow.data.documents import TABLE
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.settings.calibration import DocumentSettings

GERMAN = "Der Gärtner wartete den ganzen Winter, denn der Boden war noch viel zu hart dafür. "


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def rewrite(workspace, table, recount=True) -> None:
    """Put a table in place with a manifest that fits it, as a faulty builder would."""
    manifest = read_json(workspace.out / "manifest.json")
    for name, domain in manifest["domains"].items() if recount else ():
        domain["documents"] = int((table["domain"] == name).sum())
    facts = {key: value for key, value in manifest.items() if key not in ("files", "digest")}
    converted = pyarrow.Table.from_pandas(table, preserve_index=False)
    pyarrow.parquet.write_table(converted, workspace.out / TABLE)
    write_manifest(workspace.out, **facts)


def test_a_good_table_passes_and_the_result_is_the_same_twice(built):
    before = built.validation.read_bytes()
    result = read_json(built.validation)
    assert result["success"] is True
    assert result["documents"] == read_json(built.out / "manifest.json")["digest"]
    assert {item["expectation"] for item in result["expectations"]} >= {
        "expect_table_columns_to_match_ordered_list",
        "expect_column_values_to_not_be_null",
        "expect_column_values_to_be_unique",
    }
    assert all(item["success"] for item in result["expectations"] + result["checks"])
    assert built.validate() == result
    assert built.validation.read_bytes() == before


def _cell(column, value):
    """Put a value into row 3."""

    def poison(table, question):
        table.loc[3, column] = value
        return table

    return poison


def _text(write):
    """Put a text into row 3, with its own sha256."""

    def poison(table, question):
        text = write(table.loc[3, "text"], question)
        table.loc[3, ["text", "sha256"]] = [text, sha256(text)]
        return table

    return poison


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


def _document_too_few(table, question):
    return table.drop(index=table.index[table.split == "calibration"][0])


def _same_row_twice(table, question):
    table.loc[4] = table.loc[3]
    return table


def _duplicate_in_another_split(table, question):
    row = table.loc[3].copy()
    row["text"] = row["text"].upper()
    row["sha256"] = sha256(row["text"])
    row["split"] = next(split for split in ("test", "calibration") if split != row["split"])
    table.loc[4] = row
    return table


@pytest.mark.parametrize(
    ("poison", "row", "words"),
    [
        (_cell("text", None), 3, "expect_column_values_to_not_be_null on text"),
        (_cell("licence", " "), 3, "expect_column_values_to_be_in_set on licence"),
        (_cell("licence", "Free as in beer"), 3, "expect_column_values_to_be_in_set on licence"),
        (
            _cell("licence", "Apache-2.0"),
            3,
            "expect_column_values_to_be_in_set on licence of the source",
        ),
        (
            _cell("language", "nl"),
            3,
            "expect_column_values_to_be_in_set on language of the source",
        ),
        (
            lambda table, _: table.assign(text=range(len(table))),
            None,
            "expect_column_values_to_be_in_set on text",
        ),
        (_document_too_few, None, "expect_column_pair_values_to_be_equal on documents and drawn"),
        (_group_in_two_splits, "group", "no_group_in_two_splits"),
        (_near_duplicate, 4, "no_near_duplicates"),
        (_cell("language", "Klingon!"), 3, "expect_column_values_to_match_regex on language"),
        (_cell("split", "train"), 3, "expect_column_values_to_be_in_set on split"),
        (_cell("text", "short"), 3, "expect_column_value_lengths_to_be_between on text"),
        (_same_row_twice, 3, "expect_column_values_to_be_unique on sha256"),
        (
            _cell("text", "A text that is long enough, and that has another hash. " * 2),
            3,
            "sha256_is_of_the_text",
        ),
        (_duplicate_in_another_split, 4, "no_text_in_two_rows"),
        (
            _text(lambda text, question: f"A short introduction comes first here. {question}"),
            3,
            "no_overlap_with_evaluation_questions",
        ),
        (_text(lambda text, question: GERMAN * 3), 3, "text_is_in_its_language"),
        (
            _text(lambda text, question: f"{text} Write to max@firma.example."),
            3,
            "no_personal_data",
        ),
        (
            lambda table, _: table[table.domain == "letters"],
            None,
            "expect_column_distinct_values_to_equal_set on domain",
        ),
        (
            lambda table, _: table[(table.domain == "letters") | (table.split != "validation")],
            None,
            "domain notes has no document for validation",
        ),
        (
            lambda table, _: table.drop(columns="licence"),
            None,
            "expect_table_columns_to_match_ordered_list",
        ),
    ],
)
def test_a_poisoned_table_is_refused_by_name_and_row(built, question, poison, row, words):
    before = built.validation.read_bytes()
    table = poison(built.table(), question)
    rewrite(built, table, recount=poison is not _document_too_few)
    with pytest.raises(InputError) as error:
        built.validate()
    message = str(error.value)
    assert words in message
    assert "\n" not in message
    if row == "group":
        row = table.index[table.group == table.loc[3, "group"]][-1]
    if row is not None:
        values = table.loc[row]
        assert f"domain {values['domain']}, source {values['source']}" in message
        assert f"sha256 {values['sha256'][:12]}" in message
    assert built.validation.read_bytes() == before


def test_failing_rows_are_found_in_every_part_of_a_large_table(built, monkeypatch):
    whole = read_json(built.validation)
    monkeypatch.setattr(expectations, "PART_BYTES", 10_000)  # two parts
    assert built.validate() == whole, "parts must add up to the whole"
    table = built.table()
    for row in (7, 21, 60, 80):
        table.loc[row, "licence"] = "Free as in beer"
    table.loc[50] = table.loc[20]
    rewrite(built, table)
    with pytest.raises(InputError) as error:
        built.validate()
    message = str(error.value)
    assert "expect_column_values_to_be_unique on sha256 fails (2 rows" in message
    table.loc[50, "sha256"] = sha256("another")
    rewrite(built, table)
    with pytest.raises(InputError) as error:
        built.validate()
    message = str(error.value)
    assert "expect_column_values_to_be_in_set on licence fails (4 rows" in message
    shown = [message.index(f"sha256 {table.loc[row, 'sha256'][:12]}") for row in (7, 21, 60)]
    assert shown == sorted(shown), "the first rows, in the table's order"
    assert table.loc[80, "sha256"][:12] not in message


def test_a_folder_without_a_table_is_refused(workspace):
    workspace.out.mkdir(parents=True)
    write_manifest(workspace.out)
    with pytest.raises(DamagedArtifactError, match="is not a table of documents"):
        workspace.validate()


def test_a_damaged_table_is_refused(built):
    path = built.out / TABLE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedArtifactError, match="damaged"):
        built.validate()


def test_near_duplicates_pass_if_only_exact_duplicates_are_dropped(built, question):
    rewrite(built, _near_duplicate(built.table(), question))
    values = {**built.settings.model_dump(), "near_duplicate_similarity": 1}
    built.settings = DocumentSettings(**values)
    assert built.validate()["success"]
