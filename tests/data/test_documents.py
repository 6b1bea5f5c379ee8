import pandas
import pytest

from pruneflow.artifacts import read_json, sha256_file
from pruneflow.calibration.documents import (
    COLUMNS,
    TABLE,
    clean,
    cut,
    read_documents,
    split_of,
)
from pruneflow.errors import DamagedArtifactError, InputError


def note(number: int, ending: str = "") -> str:
    start = f"This is the note number {number}, long enough to be kept"
    return f"{start} by the limits that the settings of this test set. {ending}"


def test_the_same_inputs_give_the_same_bytes(workspace):
    first = workspace.build()
    table, manifest = sha256_file(workspace.out / TABLE), (workspace.out / "manifest.json")
    before = manifest.read_bytes()
    assert workspace.build() == first
    assert sha256_file(workspace.out / TABLE) == table
    assert manifest.read_bytes() == before


def test_the_table_is_sorted_strings_and_the_manifest_counts_it(workspace):
    manifest = workspace.build()
    table = read_documents(workspace.out)
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


def test_the_split_depends_on_the_text_alone(workspace):
    workspace.build(seed=0)
    before = read_documents(workspace.out).set_index("sha256").split
    workspace.build(seed=7)
    after = read_documents(workspace.out).set_index("sha256").split
    assert before.sort_index().equals(after.sort_index())


def test_splits_take_their_shares():
    splits = [split_of(f"{number * 7919:064x}", 0.15, 0.25) for number in range(0, 16**12, 16**9)]
    counts = pandas.Series(splits).value_counts(normalize=True)
    assert counts["test"] == pytest.approx(0.25, abs=0.02)
    assert counts["validation"] == pytest.approx(0.15, abs=0.02)


def test_the_seed_draws_other_calibration_documents_and_the_same_test_documents(workspace):
    drawn = []
    for seed in (0, 1):
        manifest = workspace.build(seed=seed, max_per_domain=20)
        table = read_documents(workspace.out)
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
    assert not any("FROZEN" in text for text in read_documents(workspace.out).text)


def test_twelve_shared_words_are_not_an_overlap(workspace, question):
    texts = [note(number) for number in range(40)]
    workspace.write_notes([*texts, note(40, " ".join(question.split()[:12]))])
    assert workspace.build()["domains"]["notes"]["dropped"] == {}


def test_equal_documents_stay_in_the_first_domain_of_the_settings(workspace):
    shared = (workspace.root / "data/text/letters/07.txt").read_text()
    texts = [note(number) for number in range(40)]
    workspace.write_notes([*texts, texts[0] + " ", shared.upper()])
    manifest = workspace.build()
    assert manifest["domains"]["notes"]["dropped"] == {"duplicate": 1}
    assert manifest["domains"]["letters"]["dropped"] == {"duplicate": 1}
    manifest = workspace.build(domains=["letters", "notes"])
    assert manifest["domains"]["letters"]["dropped"] == {}
    assert manifest["domains"]["notes"]["dropped"] == {"duplicate": 2}


def test_short_documents_are_dropped_and_long_ones_cut_at_a_line_end(workspace):
    texts = [note(number) for number in range(40)]
    workspace.write_notes([*texts, "too short", "\n".join(note(n) for n in range(100, 110))])
    facts = workspace.build(max_characters=300)["domains"]["notes"]
    assert facts["dropped"] == {"too_short": 1}
    assert facts["cut"] == 1
    table = read_documents(workspace.out)
    (long,) = [text for text in table.text if "number 100" in text]
    assert len(long) <= 300
    assert long.endswith("of this test set.")


@pytest.mark.parametrize(
    ("text", "characters", "expected"),
    [
        ("abc\ndef", 7, "abc\ndef"),
        ("abc\ndef", 6, "abc"),
        ("abc\ndef", 3, "abc"),
        ("abcd", 2, "ab"),
    ],
)
def test_cut_keeps_whole_lines_where_it_can(text, characters, expected):
    assert cut(text, characters) == expected


def test_clean_removes_control_characters_and_composes_accents():
    assert clean("\ufeff e\u0301t\x00\x1b[0m\r\n\tend \n") == "ét[0m\n\tend"


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


def test_a_missing_source_file_is_named(workspace):
    (workspace.root / "data/text/notes.jsonl").unlink()
    with pytest.raises(InputError, match=r"domain notes.*notes.jsonl matches no file"):
        workspace.build()


def test_a_damaged_table_is_not_read(workspace):
    workspace.build()
    path = workspace.out / TABLE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DamagedArtifactError, match="damaged"):
        read_documents(workspace.out)


def test_the_manifest_on_disk_is_the_one_returned(workspace):
    assert workspace.build() == read_json(workspace.out / "manifest.json")
