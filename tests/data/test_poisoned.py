"""A calibration set poisoned on purpose: each bad row is caught, and named by file and place."""

import csv
import gzip
import json
import re
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import pytest

from pruneflow.artifacts import sha256_file
from pruneflow.data.documents import DROPPED, read_documents
from pruneflow.data.validation import validate_documents
from pruneflow.errors import InputError
from tests.data.conftest import Workspace, sentence

NEWS = "data/text/news.jsonl"
GOOD = [
    f"{town} council voted on {month} to {verb} the {place}. {name}, who has lived there for "
    f"{years} years, said that the {place} mattered to everyone in the street, old and young."
    for town, month, verb, place, name, years in zip(
        ["Leeds", "York", "Hull", "Derby", "Bath", "Ely", "Wells", "Truro", "Ripon", "Exeter"] * 4,
        ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"] * 6,
        ["repair", "sell", "close", "extend", "repaint", "insure", "move", "lease", "flood"] * 5,
        ["library", "bridge", "market hall", "swimming pool", "tram line", "mill", "theatre"] * 6,
        ["Mrs Hall", "Mr Osei", "Dr Lind", "Ms Patel", "Mr Byrne", "Mrs Okafor"] * 7,
        range(3, 43),
        strict=False,
    )
]
FRENCH = (
    "Le conseil municipal s'est réuni hier soir pour voter le budget de la ville, et les "
    "habitants ont posé beaucoup de questions sur les écoles et les transports du quartier."
)
PRIVATE = (
    "The reporter can be reached by letter at the usual address of the paper, at "
    "jane.doe@example.org or on +44 20 7946 0958, and the archive opens with AKIAIOSFODNN7EXAMPLE."
)


class Poison(NamedTuple):
    """A line of the news file, why it must be dropped, and what the detail must say."""

    line: str
    reason: str
    detail: str


def poisons(question: str) -> list[Poison]:
    def text(value: str | None) -> str:
        return json.dumps({"text": value})

    overlap = f"The fair opened today. {question} and so on, said the mayor of the small town."
    return [
        Poison(text(GOOD[3]), "duplicate", "[0-9a-f]{64}"),
        Poison(text("  " + GOOD[4].upper()), "duplicate", "[0-9a-f]{64}"),
        Poison(text(GOOD[5] + " More follows."), "near_duplicate", "[0-9a-f]{64}"),
        Poison(text(overlap), "evaluation_overlap", "t-1: after the long winter the gardener"),
        Poison(text(""), "empty", "^$"),
        Poison(text(" \n\t "), "empty", "^$"),
        Poison(text(None), "empty", "^$"),
        Poison(text("PNG\x00\x00\x1a" * 40), "binary", "binary"),
        Poison(text("Short news."), "too_short", "11 characters"),
        Poison(text("buy it now " * 60), "repetitive", "compresses to 0.0"),
        Poison(text(FRENCH), "wrong_language", "fr"),
        Poison('{"text": "half a', "malformed", "JSON"),
        Poison("text, but not JSON", "malformed", "JSON"),
        Poison(json.dumps({"title": GOOD[0]}), "malformed", "no field text .*title"),
        Poison(json.dumps(12), "malformed", "."),
        Poison(text("long " * 300_000), "malformed", "longer than 1 MB"),
    ]


@pytest.fixture
def news(workspace: Workspace, question: str) -> Workspace:
    """A workspace whose domain news holds good rows, then every poison, then a good row."""
    workspace.domains_file.write_text(
        workspace.domains_file.read_text()
        + f"news:\n- {{kind: files, files: [{NEWS}], licence: MIT}}\n"
    )
    lines = [json.dumps({"text": text}) for text in GOOD]
    lines += [poison.line for poison in poisons(question)]
    lines.append(json.dumps({"text": PRIVATE}))
    (workspace.root / NEWS).write_text("\n".join(lines) + "\n")
    workspace.settings = workspace.settings.model_copy(
        update={"domains": ["news", "letters"], "malformed": "skip", "max_record_mb": 1}
    )
    return workspace


def dropped(workspace: Workspace) -> list[dict[str, str]]:
    return pyarrow.parquet.read_table(workspace.out / DROPPED).to_pylist()


def validate(workspace: Workspace) -> dict:
    out = workspace.root / "data/calibration/validation.json"
    return validate_documents(workspace.out, workspace.benchmarks, workspace.settings, out)


def refused(workspace: Workspace, **changes) -> str:
    """The one line that a build is refused with; what was built before must stay."""
    before = sha256_file(workspace.out / DROPPED) if workspace.out.exists() else None
    with pytest.raises(InputError) as error:
        workspace.build(**changes)
    assert "\n" not in str(error.value)
    assert before == (sha256_file(workspace.out / DROPPED) if workspace.out.exists() else None)
    left = [path.name for path in workspace.out.parent.glob(".*")]
    assert left == [], "a refused build left files behind"
    return str(error.value)


def source(workspace: Workspace, name: str, **settings: str) -> Path:
    """Make `news` read one more file, which the caller writes."""
    entry = {"kind": "files", "files": [f"data/text/{name}"], "licence": "MIT", **settings}
    text = workspace.domains_file.read_text().replace("news:\n", f"news:\n- {json.dumps(entry)}\n")
    workspace.domains_file.write_text(text)
    return workspace.root / "data/text" / name


def test_every_poisoned_row_is_dropped_with_its_place_and_reason(news, question):
    manifest = news.build()
    rows = dropped(news)
    wanted = poisons(question)
    assert [(row["place"], row["reason"]) for row in rows] == [
        (f"{NEWS}, line {number}", poison.reason)
        for number, poison in enumerate(wanted, start=len(GOOD) + 1)
    ]
    for row, poison in zip(rows, wanted, strict=True):
        assert (row["domain"], row["source"]) == ("news", NEWS)
        assert re.search(poison.detail, row["detail"]), (row, poison.detail)
        assert len(row["excerpt"]) <= 80 and "\n" not in row["excerpt"]
    counts = {poison.reason: 0 for poison in wanted}
    for poison in wanted:
        counts[poison.reason] += 1
    assert manifest["domains"]["news"]["dropped"] == counts
    assert manifest["domains"]["letters"]["dropped"] == {}
    assert manifest["domains"]["news"]["documents"] == len(GOOD) + 1
    table = read_documents(news.out)
    assert set(GOOD) <= set(table["text"])
    assert validate(news)["success"]


def test_details_name_the_earlier_document(news):
    news.build()
    table = read_documents(news.out)
    known = dict(zip(table["sha256"], table["text"], strict=True))
    earlier = [known[row["detail"]] for row in dropped(news) if "duplicate" in row["reason"]]
    assert earlier == [GOOD[3], GOOD[4], GOOD[5]]


def test_a_poisoned_set_is_the_same_twice(news):
    assert news.build()["digest"] == news.build()["digest"]


def test_a_text_of_an_earlier_domain_is_a_duplicate_in_a_later_one(news):
    news.write_notes([*(sentence(number) for number in range(40)), GOOD[7], GOOD[8] + " More."])
    manifest = news.build(domains=["news", "notes"])
    rows = [(row["place"], row["reason"]) for row in dropped(news) if row["domain"] == "notes"]
    assert rows == [
        ("data/text/notes.jsonl, line 41", "duplicate"),
        ("data/text/notes.jsonl, line 42", "near_duplicate"),
    ]
    assert manifest["domains"]["notes"]["documents"] == 40


@pytest.mark.parametrize("choice", ["mask", "drop", "keep"])
def test_personal_data_is_masked_dropped_or_kept_as_asked(news, choice):
    manifest = news.build(personal_data=choice)
    texts = read_documents(news.out)["text"]
    found = [text for text in texts if text.startswith("The reporter can be reached")]
    places = {row["place"]: row["reason"] for row in dropped(news)}
    masked = manifest["domains"]["news"]["masked"]
    if choice == "mask":
        assert masked == {"email": 1, "phone": 1, "key": 1}
        (text,) = found
        assert text.endswith("at <EMAIL> or on <PHONE>, and the archive opens with <KEY>.")
    elif choice == "drop":
        line = len((news.root / NEWS).read_text().splitlines())
        assert places[f"{NEWS}, line {line}"] == "personal_data" and not found
    else:
        assert found == [PRIVATE] and not any(masked.values())


def test_malformed_rows_end_the_build_unless_the_setting_says_skip(news):
    news.build()
    message = refused(news, malformed="error")
    assert f"domain news, source {NEWS}" in message
    assert f"{NEWS}, line {len(GOOD) + 8}" in message  # the binary row is the first of them
    assert "documents.malformed: skip" in message


@pytest.mark.parametrize(("line", "says"), [(0, "line 3"), (1, "longer than 1 MB")])
def test_a_broken_line_of_a_compressed_file_is_named(news, line, says):
    broken = ['{"text": ', json.dumps({"text": "x" * 2**21})][line]
    lines = [json.dumps({"text": GOOD[0]}), json.dumps({"text": GOOD[1]}), broken]
    with gzip.open(source(news, "more.jsonl.gz"), "wt") as stream:
        stream.write("\n".join(lines))
    message = refused(news, malformed="error")
    assert "data/text/more.jsonl.gz, line 3" in message and says in message
    news.build()
    rows = [row for row in dropped(news) if row["source"] == "data/text/more.jsonl.gz"]
    assert [(row["place"], row["reason"]) for row in rows] == [
        ("data/text/more.jsonl.gz, line 3", "malformed")
    ]


def test_binary_and_empty_rows_of_a_parquet_file_are_named(news):
    values = [GOOD[0] + " A new end, for a new file.", "", None, "PNG\x00\x00\x1a" * 40]
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), source(news, "rows.parquet"))
    news.build()
    rows = [row for row in dropped(news) if row["source"] == "data/text/rows.parquet"]
    assert [(row["place"].removeprefix("data/text/"), row["reason"]) for row in rows] == [
        ("rows.parquet, row 2", "empty"),
        ("rows.parquet, row 3", "empty"),
        ("rows.parquet, row 4", "binary"),
    ]
    assert "data/text/rows.parquet, row 4" in refused(news, malformed="error")


def test_bytes_in_a_parquet_file_are_refused(news):
    values = pyarrow.array([GOOD[0].encode()], pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), source(news, "rows.parquet"))
    assert "data/text/rows.parquet, row 1 has bytes" in refused(news, malformed="error")


def test_a_csv_row_with_too_many_fields_is_named(news):
    with source(news, "rows.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["text"], [GOOD[0] + " A."], [GOOD[1], "a", "b"]])
    assert "data/text/rows.csv, line 3 has 3 fields" in refused(news, malformed="error")


@pytest.mark.parametrize("licence", [None, "", "Free as in beer"])
def test_a_missing_or_unknown_licence_is_refused_by_domain_and_source(news, licence):
    text = news.domains_file.read_text()
    entry = f", licence: {json.dumps(licence)}" if licence is not None else ""
    old = f"[{NEWS}], licence: MIT"
    assert old in text
    news.domains_file.write_text(text.replace(old, f"[{NEWS}]{entry}"))
    message = refused(news)
    assert "domain news, source 1" in message and "licence" in message


def test_a_source_that_says_another_language_is_refused(news):
    old = f"[{NEWS}], licence: MIT"
    text = news.domains_file.read_text()
    news.domains_file.write_text(text.replace(old, f"{old}, language: fr"))
    message = refused(news)
    assert f"domain news, source {NEWS}" in message
    assert "has language fr" in message and "are en" in message


def test_a_source_of_nothing_but_empty_rows_is_refused(news):
    source(news, "blank.jsonl").write_text(json.dumps({"text": " "}) + "\n")
    message = refused(news)
    assert "domain news, source data/text/blank.jsonl" in message


def test_a_template_field_that_no_record_has_is_refused(news):
    source(news, "rows.jsonl", template="{headline}").write_text(json.dumps({"text": "x"}) + "\n")
    message = refused(news, malformed="error")
    assert "data/text/rows.jsonl, line 1" in message and "headline" in message
