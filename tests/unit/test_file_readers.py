"""File formats by suffix, the places of unreadable records, and memory use."""

import gzip
import json
import re
import struct
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneflow.data import file_readers
from pruneflow.data.file_readers import read_records
from pruneflow.data.record_template import RecordFormat, TextRecord, Unreadable
from pruneflow.errors import InputError

LIMIT = 16 * 2**20


def read(path: Path, limit: int = LIMIT, **settings: object) -> list[TextRecord | Unreadable]:
    return list(read_records(path, path.name, RecordFormat(**settings), limit))


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


FORMATS = [
    ("a.jsonl", '{"text": "one"}\n\n{"text": "two\\nlines"}\n', ["line 1", "line 3"]),
    ("a.ndjson", '\ufeff{"text": "one"}\n{"text": "two\\nlines"}', ["line 1", "line 2"]),
    ("a.csv", 'id,text\n1,one\n\n2,"two\nlines"\n', ["line 2", "line 4"]),
    ("a.tsv", 'id\ttext\n1\tone\n2\t"two\nlines"\n', ["line 2", "line 3"]),
    ("a.json", '[{"text": "one"}, "two\\nlines"]', ["record 1", "record 2"]),
    ("a.yml", "- text: one\n- [two, lines]\n", ["record 1", "record 2"]),
    ("a.YAML", "- text: one\n- [two, lines]\n", ["record 1", "record 2"]),
]


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(("name", "content", "places"), FORMATS)
def test_every_data_file_gives_its_records_and_their_places(
    tmp_path, name, content, places, ending
):
    path = write(tmp_path / (name + ending), content)
    assert read(path) == [
        TextRecord(text, f"{name}{ending}, {place}")
        for text, place in zip(["one", "two\nlines"], places, strict=True)
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "no_ending", "a.txt.gz", "a.md.gz"])
def test_any_other_file_is_one_document(tmp_path, name):
    path = write(tmp_path / name, "\ufeffa {text}\n\nof lines\n")
    assert read(path) == [TextRecord("a {text}\n\nof lines", name)]


def test_parquet_is_read_in_batches_of_the_needed_columns(tmp_path):
    table = {"text": [f"row {n}" for n in range(200)] + [None], "other": [b"\0"] * 201}
    table["bytes"] = [b"text"] * 201
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet", row_group_size=90)
    found = read(tmp_path / "a.parquet")
    assert found[150] == TextRecord("row 150", "a.parquet, row 151")
    assert found[200] == TextRecord("", "a.parquet, row 201")
    bad = read(tmp_path / "a.parquet", template="{other}")[0]
    assert (bad.place, bad.reason) == ("a.parquet, row 1", "binary")
    assert "has bytes" in read(tmp_path / "a.parquet", template="{bytes}")[0].problem
    assert "it has bytes, other, text" in read(tmp_path / "a.parquet", template="{body}")[0].problem


def test_parquet_values_that_python_cannot_hold_are_placed_and_others_are_read(tmp_path):
    invalid = pyarrow.Array.from_buffers(
        pyarrow.utf8(),
        2,
        [None, *map(pyarrow.py_buffer, (struct.pack("<3i", 0, 2, 4), b"ok\xff\xfe"))],
    )
    late = pyarrow.array([0, 2**62]).view(pyarrow.timestamp("us"))
    nowhere = pyarrow.array([0, 1]).view(pyarrow.timestamp("us", tz="Mars/Base"))
    columns = {"invalid": invalid, "late": late, "nowhere": nowhere, "text": ["a", "b"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert [record.text for record in read(tmp_path / "a.parquet")] == ["a", "b"]
    for column, first in (("invalid", "ok"), ("late", "1970-01-01 00:00:00")):
        good, bad = read(tmp_path / "a.parquet", template=f"{{{column}}}")
        assert good.text == first
        assert bad.place == "a.parquet, row 2"
        assert bad.problem.startswith(f"has a value in {column} that cannot be read (")
    bad = read(tmp_path / "a.parquet", template="{nowhere}")
    assert [one.place for one in bad] == ["a.parquet, row 1", "a.parquet, row 2"]
    assert "it has invalid, late" in read(tmp_path / "a.parquet", template="{body}")[0].problem


@pytest.mark.parametrize(
    ("name", "content", "place", "words", "then"),
    [
        ("a.jsonl", b'{"text": \n{"text": "b"}\n', "line 1", "is not valid JSON", ["b"]),
        ("a.jsonl", b'{"t": "a"}\n"b"\n', "line 1", "has no field text (it has t)", ["b"]),
        ("a.jsonl", b'3\n"b"\n', "line 1", "is not a mapping, a list of lines or a text", ["b"]),
        ("a.jsonl", b'{"text": {"a": 1}}\n"b"\n', "line 1", "has a mapping, not text", ["b"]),
        ("a.jsonl", b'"\xff"\n"b"\n', "line 1", "is not UTF-8 text", ["b"]),
        ("a.jsonl", b'"\\ud800"\n"b"\n', "line 1", "is not UTF-8 text", ["b"]),
        ("a.jsonl", b"[" * 100_000 + b'\n"b"\n', "line 1", "is not valid JSON", ["b"]),
        ("a.jsonl", b"9" * 5000 + b'\n"b"\n', "line 1", "is not valid JSON", ["b"]),
        ("a.csv", b'text\n"a"b\nb\n', "line 2", "is not valid CSV", ["b"]),
        ("a.csv", b"text,x\na\nb,c\n", "line 2", "has 1 fields, the header 2", ["b"]),
        ("a.csv", b"text\n\xff\nb\n", "line 2", "is not UTF-8 text", ["b"]),
        ("a.csv", b'text\nb\n"open\nquotes\n', "line 3", "is not valid CSV", ["b"]),
        ("a.csv", b'"text\nb\n', "line 1", "is not valid CSV", []),
        ("a.yml", b"a: [", "", "is not valid YAML", []),
        ("a.json", b'{"text": "a"}\n{"text": "b"}\n', "", "is not valid JSON", []),
        ("a.txt", b"\xe9t\xe9", "", "is not UTF-8 text", []),
        ("a.parquet", b"PAR1", "", "is not valid parquet", []),
        ("a.txt.gz", b"", "", "", [""]),
    ],
)
def test_unreadable_records_have_a_place_and_the_others_are_read(
    tmp_path, name, content, place, words, then
):
    found = read(write(tmp_path / name, content))
    bad = [item for item in found if isinstance(item, Unreadable)]
    assert [item.text for item in found if isinstance(item, TextRecord)] == then
    assert [item.place for item in bad] == ([f"{name}, {place}" if place else name] * bool(words))
    assert not words or (words in bad[0].problem and bad[0].reason == "malformed")


def test_json_lines_in_a_json_file_should_be_renamed(tmp_path):
    (bad,) = read(write(tmp_path / "a.json", '{"text": "a"}\n{"text": "b"}\n'))
    assert "rename it to .jsonl" in bad.fix


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.txt", b"\x89PNG\0", ""),
        ("a.pdf", b"%PDF\xff\0", ""),
        ("a.jsonl", b'"a\0"\n"b"\n', ", line 1"),
        ("a.jsonl", b'"a\\u0000"\n"b"\n', ", line 1"),
        ("a.csv", b"text\na\0\nb\n", ", line 2"),
    ],
)
def test_binary_content_is_distinguished_from_malformed_text(tmp_path, name, content, place):
    found = read(write(tmp_path / name, content))[0]
    assert isinstance(found, Unreadable)
    assert (found.place, found.reason) == (name + place, "binary")


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("a.jsonl", json.dumps("x" * 200) + '\n"b"\n', 2),
        ("a.csv", f"text\n{'x' * 200}\nb\n", 2),
        ("a.csv", f'text\n"{"x" * 60}\n{"y" * 60}"\nb\n', 2),
        ("a.txt", "x" * 200, 1),
        ("a.txt", "é" * 60, 1),
        ("a.json", json.dumps(["x" * 200]), 1),
    ],
)
def test_records_longer_than_the_limit_are_unreadable(tmp_path, name, content, count):
    found = read(write(tmp_path / name, content), limit=100)
    bad = next(item for item in found if isinstance(item, Unreadable))
    assert "is longer than" in bad.problem and "max_record_mb" in bad.fix
    assert len(found) == count
    assert count == 1 or found[-1].text == "b"


def test_a_line_as_long_as_the_limit_is_read(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps("x" * 98) + "\n" + json.dumps("x" * 99) + "\n")
    assert [isinstance(item, TextRecord) for item in read(path, limit=100)] == [True, True]
    path = write(tmp_path / "a.jsonl", json.dumps("x" * 300) + "\n" + json.dumps("x" * 98))
    assert [isinstance(item, TextRecord) for item in read(path, limit=100)] == [False, True]


def peak_of(path: Path, **settings: object) -> tuple[int, int]:
    """Number of records and peak of memory in MB while they are read one by one."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_records(path, path.name, RecordFormat(**settings), LIMIT))
        return count, tracemalloc.get_traced_memory()[1] // 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "settings"),
    [("a.jsonl.gz", {}), ("a.csv.gz", {}), ("a.txt.gz", {}), ("a.txt.gz", {"separator": "---"})],
)
def test_a_line_of_200_mb_is_refused_without_holding_it(tmp_path, name, settings):
    path = tmp_path / name
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b'text\n"' if "csv" in name else b'"')
        for _ in range(200):
            stream.write(b"x" * 2**20)
        stream.write(b'"\n')
    first = next(read_records(path, name, RecordFormat(**settings), LIMIT))
    assert isinstance(first, Unreadable) and "is longer than 16 MB" in first.problem
    assert peak_of(path, **settings)[1] < 100


@pytest.mark.parametrize(("name", "settings"), [("a.jsonl", {}), ("a.txt", {"separator": "\n"})])
def test_a_long_file_is_streamed(tmp_path, name, settings):
    path = tmp_path / name
    path.write_text((json.dumps("x" * 4096) + "\n") * 10_000)
    count, peak = peak_of(path, **settings)
    assert (count, peak < 5) == (10_000, True)


def test_a_long_parquet_file_is_streamed(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{n} " * 800 for n in range(10_000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=1000)
    del texts
    assert peak_of(path)[1] < 5


@pytest.mark.parametrize("cut", [3, 15, -6])
def test_damaged_gzip_is_named(tmp_path, cut):
    path = write(tmp_path / "a.jsonl.gz", '{"text": "one"}\n' * 100)
    path.write_bytes(path.read_bytes()[:cut])
    found = read(path)
    assert (found[-1].place, found[-1].reason) == ("a.jsonl.gz", "malformed")
    assert "is damaged gzip" in found[-1].problem
    path.write_bytes(b"plain text")
    assert "is damaged gzip" in read(path)[0].problem


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("a.jsonl", {"separator": "x"}, "separator has no effect on a.jsonl"),
        ("a.txt", {"records": "a"}, "records has no effect on a.txt"),
        ("a.csv", {"records": "a"}, "records has no effect on a.csv"),
        ("a.yml", {"records": "talks"}, "a.yml has no talks: correct `records`"),
        ("a.yml", {}, "set `records` to the path"),
    ],
)
def test_a_setting_that_does_not_fit_the_file_is_refused(tmp_path, name, settings, words):
    with pytest.raises(InputError, match=re.escape(words)):
        read(write(tmp_path / name, "a: 3"), **settings)


def test_a_separator_divides_a_text_and_its_documents_know_their_lines(tmp_path):
    path = write(tmp_path / "a.txt", "---\none\ntwo\r\n---\n\n\nthree\n---\n---\n")
    assert read(path, separator="^---$") == [
        TextRecord("one\ntwo", "a.txt, line 2"),
        TextRecord("three", "a.txt, line 7"),
    ]
    path = write(tmp_path / "b.txt", "# a\ntext\n# b\n")
    assert read(path, separator="(?m)(?=^# )") == [
        TextRecord("# a\ntext", "b.txt, line 1"),
        TextRecord("# b", "b.txt, line 3"),
    ]


def test_unreadable_documents_between_separators_have_a_place(tmp_path):
    content = b"one\n---\n\xff\n---\n" + b"x\n" * 300_000 + b"---\n\0\n---\nend"
    found = read(write(tmp_path / "a.txt", content), limit=100_000, separator="^---$")
    assert [(type(item), item.place) for item in found] == [
        (TextRecord, "a.txt, line 1"),
        (Unreadable, "a.txt, line 3"),
        (Unreadable, "a.txt, line 4"),
        (Unreadable, "a.txt, line 300006"),
        (TextRecord, "a.txt, line 300008"),
    ]
    assert "is longer than" in found[2].problem
    assert found[3].reason == "binary"


@given(
    text=st.text(alphabet="ab# \n-", max_size=300),
    separator=st.sampled_from([r"\n\n+", "^---$", "(?=^# )", "a", "(?<=b)a*b", r"\n(?!a)"]),
    chunk=st.integers(1, 40),
)
def test_separators_do_not_depend_on_the_chunk_size(tmp_path_factory, text, separator, chunk):
    path = write(tmp_path_factory.getbasetemp() / "separated.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_readers, "CHUNK", chunk)
        patch.setattr(file_readers, "CONTEXT", 300)
        found = [item.text for item in read(path, separator=separator)]
    expected = [piece.strip() for piece in re.split(separator, text, flags=re.M)]
    assert found == [piece for piece in expected if piece]
