import hashlib
import json
import random

import pandas
import pyarrow.parquet
import pytest

from pruneflow.artifacts import read_json, sha256_file
from pruneflow.data import document_table
from pruneflow.data.document_table import COLUMNS
from pruneflow.data.documents import DROPPED, TABLE, split_of
from pruneflow.errors import InputError
from tests.data.conftest import sentence


def note(number: int, ending: str = "") -> str:
    words = ("harbour", "candle", "bridge", "orchard", "button", "valley", "copper", "whistle")
    story = " ".join(random.Random(number).choices(words, k=16))
    return f"This is the note number {number} about the {story} and more. {ending}"


def test_the_same_inputs_give_the_same_bytes(workspace):
    first = workspace.build()
    names = (TABLE, DROPPED, "manifest.json")
    before = [sha256_file(workspace.out / name) for name in names]
    assert workspace.build() == first == read_json(workspace.out / "manifest.json")
    assert [sha256_file(workspace.out / name) for name in names] == before


def test_the_table_is_sorted_and_the_manifest_counts_its_rows(workspace):
    manifest = workspace.build()
    table = workspace.table()
    assert tuple(table.columns) == COLUMNS
    assert list(zip(table.domain, table.sha256, strict=True)) == sorted(
        zip(table.domain, table.sha256, strict=True)
    )
    letters = manifest["domains"]["letters"]
    assert letters["documents"] == (table.domain == "letters").sum() == 30
    assert letters["languages"] == {"fr": 30}
    assert letters["licences"] == ["CC0-1.0"]
    assert sum(letters["splits"].values()) == 30
    assert letters["characters"] == table[table.domain == "letters"].text.str.len().sum()
    assert set(manifest["text_files"]) >= {"data/text/notes.jsonl", "data/text/letters/00.txt"}
    assert manifest["python"].count(".") == 2


def test_splits_take_their_shares():
    splits = [split_of(f"{number * 7919:064x}", 0.15, 0.25) for number in range(0, 16**12, 16**9)]
    counts = pandas.Series(splits).value_counts(normalize=True)
    assert counts["test"] == pytest.approx(0.25, abs=0.02)
    assert counts["validation"] == pytest.approx(0.15, abs=0.02)


def test_a_text_is_in_the_same_split_on_every_machine():
    hashes = [hashlib.sha256(letter.encode()).hexdigest() for letter in "abcdef"]
    assert [split_of(sha256, 0.15, 0.25) for sha256 in hashes] == [
        "calibration",
        "calibration",
        "validation",
        "calibration",
        "calibration",
        "test",
    ]


def test_the_seed_changes_the_sampled_calibration_documents_but_not_the_test_documents(workspace):
    drawn = []
    for seed in (0, 1):
        manifest = workspace.build(seed=seed, max_per_domain=20)
        table = workspace.table()
        drawn.append({split: set(rows.sha256) for split, rows in table.groupby("split")})
        assert manifest["domains"]["notes"]["documents"] <= 20
        assert manifest["domains"]["notes"]["dropped"]["not_drawn"] >= 40
    assert drawn[0]["test"] == drawn[1]["test"]
    assert drawn[0]["calibration"] != drawn[1]["calibration"]


def test_a_document_with_a_pasted_question_is_dropped_and_counted(workspace, question):
    texts = [note(number) for number in range(40)]
    workspace.write_notes([*texts, note(40, question.upper().replace(" but", ", but")), note(41)])
    manifest = workspace.build()
    assert manifest["domains"]["notes"]["dropped"] == {"evaluation_overlap": 1}
    assert not any("FROZEN" in text for text in workspace.table().text)
    (row,) = workspace.dropped()
    assert row["place"] == "data/text/notes.jsonl, line 41"
    assert row["detail"] == f"t-1: {' '.join(question.lower().split()[:13])}"


def test_twelve_shared_words_are_not_an_overlap(workspace, question):
    texts = [note(number) for number in range(40)]
    workspace.write_notes([*texts, note(40, " ".join(question.split()[:12]))])
    assert workspace.build()["domains"]["notes"]["dropped"] == {}


def test_equal_documents_stay_in_the_first_domain_of_the_settings(workspace):
    shared = note(77)
    texts = [note(number) for number in range(40)]
    workspace.write_notes([*texts, texts[0] + " ", shared.upper()])
    workspace.add_letter_source(shared)
    manifest = workspace.build()
    assert manifest["domains"]["notes"]["dropped"] == {"duplicate": 1}
    assert manifest["domains"]["letters"]["dropped"] == {"duplicate": 1}
    first, second = workspace.dropped()
    assert first["place"] == "data/text/notes.jsonl, line 41"
    table = workspace.table().set_index("sha256").text
    assert table[first["detail"]] == texts[0].strip()
    assert table[second["detail"]] == shared.upper().strip()
    manifest = workspace.build(domains=["letters", "notes"])
    assert manifest["domains"]["letters"]["dropped"] == {}
    assert manifest["domains"]["notes"]["dropped"] == {"duplicate": 2}


def test_near_duplicates_are_dropped_across_domains_unless_disabled(workspace):
    texts = [sentence(number, words=60) for number in range(40)]
    workspace.write_notes([*texts, texts[3].replace("the ", "a "), sentence(99, words=60)])
    workspace.add_letter_source(texts[5] + " The end.")
    manifest = workspace.build()
    assert manifest["domains"]["notes"]["dropped"] == {"near_duplicate": 1}
    assert manifest["domains"]["letters"]["dropped"] == {"near_duplicate": 1}
    table = workspace.table().set_index("sha256").text
    assert [table[row["detail"]] for row in workspace.dropped()] == [texts[3], texts[5]]
    manifest = workspace.build(near_duplicate_similarity=1)
    assert manifest["domains"]["notes"]["dropped"] == {}


def test_a_source_in_another_language_is_named(workspace):
    text = workspace.domains_file.read_text()
    workspace.domains_file.write_text(text.replace("language: fr", "language: es"))
    with pytest.raises(InputError, match=r"letters/\*.txt has language es, but 29 of 30 .* are fr"):
        workspace.build()
    assert workspace.build(language_confidence=1)["domains"]["letters"]["languages"] == {"es": 30}


def test_documents_of_a_group_are_in_one_split(workspace):
    records = [{"text": note(number), "title": f"book {number % 8}"} for number in range(160)]
    path = workspace.root / "data/text/notes.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = workspace.domains_file.read_text()
    grouped = 'notes.jsonl], group: "{title}"'
    workspace.domains_file.write_text(text.replace("notes.jsonl]", grouped))
    workspace.build()
    table = workspace.table()
    notes = table[table.domain == "notes"]
    assert notes.group.nunique() == 8
    assert (notes.groupby("group").split.nunique() == 1).all()
    letters = table[table.domain == "letters"]
    assert (letters.group == letters.sha256.str[:16]).all()


def test_masks_and_repairs_are_counted_and_dropped_rows_hide_personal_data(workspace):
    texts = [note(number) for number in range(40)]
    texts += [note(40, "Ask jane@example.org or +44 20 7946 0958."), note(41, "FranÃ§ois came.")]
    workspace.write_notes(texts)
    facts = workspace.build()["domains"]["notes"]
    assert facts["masked"] == {"email": 1, "phone": 1, "key": 0}
    assert facts["repaired"] == 1
    found = " ".join(workspace.table().text)
    assert "Ask <EMAIL> or <PHONE>." in found
    assert "François came." in found
    facts = workspace.build(personal_data="drop")["domains"]["notes"]
    assert facts["dropped"] == {"personal_data": 1}
    assert facts["masked"] == {"email": 0, "phone": 0, "key": 0}
    assert workspace.dropped()[0]["detail"] == "email, phone"


def test_the_manifest_counts_each_source(workspace):
    workspace.add_letter_source(note(77))
    sources = workspace.build()["domains"]["letters"]["sources"]
    assert {name: facts["documents"] for name, facts in sources.items()} == {
        "data/text/letters/*.txt": 30,
        "data/text/more.txt": 1,
    }
    assert sources["data/text/more.txt"]["licence"] == "MIT"
    assert sources["data/text/letters/*.txt"]["language"] == "fr"
    assert sum(facts["characters"] for facts in sources.values()) == sum(
        len(text) for text in workspace.table().query("domain == 'letters'").text
    )


def test_nothing_but_the_table_is_left_behind(workspace):
    workspace.build()
    names = {"documents.parquet", "dropped.parquet", "manifest.json"}
    assert {path.name for path in workspace.out.iterdir()} == names
    workspace.write_notes([note(1)])
    with pytest.raises(InputError):
        workspace.build()
    assert {path.name for path in workspace.out.iterdir()} == names
    assert [path.name for path in workspace.out.parent.iterdir()] == ["documents"]


def test_row_groups_are_small_whatever_the_size(workspace, monkeypatch):
    monkeypatch.setattr(document_table, "ROW_GROUP", 40)
    workspace.build()
    groups = pyarrow.parquet.ParquetFile(workspace.out / TABLE).metadata
    sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
    assert sizes == [40, 40, 10]


def test_long_documents_are_truncated_at_a_line_end(workspace):
    texts = [note(number) for number in range(40)]
    workspace.write_notes([*texts, "\n".join(note(n) for n in range(100, 110))])
    assert workspace.build(max_characters=300)["domains"]["notes"]["cut"] == 1
    table = workspace.table()
    (long,) = [text for text in table.text if "number 100" in text]
    assert len(long) <= 300
    assert long.endswith("and more.")


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        (["notes", "gossip"], ["gossip", "known: empty, letters, notes"]),
        (["empty"], ["domain empty has no source", "domains.yaml"]),
    ],
)
def test_a_domain_that_cannot_be_built_is_named(workspace, domains, words):
    with pytest.raises(InputError) as error:
        workspace.build(domains=domains)
    assert all(word in str(error.value) for word in words)
    assert not workspace.out.exists()


def test_too_few_documents_name_domain_source_and_the_reasons(workspace):
    workspace.write_notes([note(1), "short"])
    with pytest.raises(InputError) as error:
        workspace.build()
    message = str(error.value)
    assert "domain notes has 1 usable documents from data/text/notes.jsonl" in message
    assert "1 too_short" in message
    assert "add text or sources to notes" in message
    assert "\n" not in message


def test_an_empty_source_is_named_and_the_earlier_table_stays(workspace):
    workspace.build()
    before = sha256_file(workspace.out / TABLE)
    workspace.write_notes([])
    with pytest.raises(InputError, match=r"domain notes, source data/text/notes.jsonl.*no text"):
        workspace.build()
    assert sha256_file(workspace.out / TABLE) == before


def test_a_source_without_a_usable_document_is_named_with_the_reasons(workspace):
    texts = workspace.root / "data/text"
    (texts / "one.txt").write_text("hello")
    with workspace.domains_file.open("a") as file:
        file.write("more:\n- {kind: files, files: [data/text/letters/*.txt], licence: MIT, ")
        file.write("language: fr}\n- {kind: files, files: [data/text/one.txt], licence: MIT}\n")
    with pytest.raises(InputError) as error:
        workspace.build(domains=["more"])
    assert "domain more, source data/text/one.txt: none of its documents is usable" in str(
        error.value
    )
    assert "1 too_short" in str(error.value)
