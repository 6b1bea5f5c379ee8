"""Streaming file readers: rows one at a time, never a complete data file or an endless line."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow
import pyarrow.parquet
import yaml

from pruneflow.data.record_template import (
    RecordFormat,
    Row,
    TextRecord,
    Unreadable,
    as_record,
    fill,
    too_long,
)
from pruneflow.errors import InputError

Rows = Iterator[Row | Unreadable]
Reader = Callable[[BinaryIO, str, RecordFormat, int], Rows]

CHUNK = 1 << 18
CONTEXT = 4096
"""Characters before and after a match that a separator's expression may look at."""
BATCH_ROWS = 64


def read_records(
    path: Path, name: str, settings: RecordFormat, max_bytes: int
) -> Iterator[TextRecord | Unreadable]:
    """Yield the records of a data file, or the documents of a text file.

    Data files are .jsonl, .ndjson, .json, .csv, .tsv, .yml, .yaml and .parquet; any other file is
    a text file. All except .parquet may be gzipped (`NAME.jsonl.gz`).

    Args:
        path: the file.
        name: its name in messages, with the suffix.
        settings: template, separator and so on.
        max_bytes: longer lines, records and text files are unreadable, and never held in memory.

    Raises:
        InputError: a setting does not apply to this kind of file, or does not match its content.
    """
    yield from fill(_rows(path, name, settings, max_bytes), settings, max_bytes)


def _rows(path: Path, name: str, settings: RecordFormat, max_bytes: int) -> Rows:
    zipped = name.lower().endswith(".gz")
    suffix = (name[:-3] if zipped else name).rsplit(".", 1)[-1].lower()
    reader = READERS.get(suffix, text_rows)
    for setting, used in (("records", listed_rows), ("separator", text_rows)):
        if getattr(settings, setting) and reader is not used:
            raise InputError(f"{setting} has no effect on {name}: remove it")
    if suffix == "parquet" and not zipped:
        yield from parquet_rows(path, name, settings, max_bytes)
        return
    with path.open("rb") as file:
        stream = io.BufferedReader(gzip.GzipFile(fileobj=file), CHUNK) if zipped else file
        try:
            yield from reader(stream, name, settings, max_bytes)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            yield Unreadable(name, f"is damaged gzip ({error})", "compress it again")


def json_lines(stream: BinaryIO, name: str, settings: RecordFormat, max_bytes: int) -> Rows:
    """Yield the value of every non-empty line."""
    for number, line in _lines(stream, max_bytes):
        place = f"{name}, line {number}"
        text = _decoded(line, place, max_bytes)
        if isinstance(text, Unreadable):
            yield text
        elif text.strip():
            yield _parsed(text, place, "JSON")


def csv_rows(
    stream: BinaryIO, name: str, settings: RecordFormat, max_bytes: int, delimiter: str = ","
) -> Rows:
    """Yield every row as fields; its place is its first line."""
    # The limit is of the process; `_CsvLines` is what limits a row.
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
    lines = _CsvLines(stream, name, max_bytes)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        place = lines.next_row()
        try:
            values = next(reader)
        except StopIteration:
            return
        except _BadLineError as error:
            yield error.unreadable
        except csv.Error as error:
            yield Unreadable(place, f"is not valid CSV ({error})")
        else:
            if values and header is None:
                header = values
            elif values and len(values) != len(header or []):
                yield Unreadable(place, f"has {len(values)} fields, the header {len(header or [])}")
            elif values:
                yield Row(place, dict(zip(header or [], values, strict=True)))
            continue
        if header is None:
            return


def listed_rows(stream: BinaryIO, name: str, settings: RecordFormat, max_bytes: int) -> Rows:
    """Yield the items of the list in a .json or .yml file, which is read completely."""
    text = _complete(stream, name, max_bytes, "store it as .jsonl")
    kind = "JSON" if name.lower().removesuffix(".gz").endswith(".json") else "YAML"
    parsed = text if isinstance(text, Unreadable) else _parsed(text, name, kind)
    if isinstance(parsed, Unreadable):
        yield parsed
        return
    value = parsed.value
    for key in filter(None, (settings.records or "").split(".")):
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"{name} has no {settings.records}: correct `records`")
        value = value[key]
    if not isinstance(value, list):
        raise InputError(f"{name} is not a list of records: set `records` to the path of its list")
    for number, item in enumerate(value, start=1):
        yield Row(f"{name}, record {number}", item)


def text_rows(stream: BinaryIO, name: str, settings: RecordFormat, max_bytes: int) -> Rows:
    """Yield a text as one row, or the documents between its separators."""
    if settings.separator:
        yield from _separated(stream, name, re.compile(settings.separator, re.M), max_bytes)
        return
    text = _complete(stream, name, max_bytes, "split it, give `separator`")
    yield text if isinstance(text, Unreadable) else Row(name, text)


def parquet_rows(path: Path, name: str, settings: RecordFormat, max_bytes: int) -> Rows:
    """Yield every row of a parquet file; only the needed columns are read."""
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=CHUNK) as file:
            known = file.schema_arrow.names
            needed = [field for field in settings.fields if field in known]
            number = 0
            for batch in file.iter_batches(BATCH_ROWS, columns=needed, use_threads=False):
                for index in range(batch.num_rows):
                    number += 1
                    # A row reports the columns of the file if the template names another one.
                    values = dict.fromkeys(known)
                    yield _parquet_row(batch, index, values, f"{name}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        detail = " ".join(str(error).split())[:200]
        yield Unreadable(name, f"is not valid parquet ({detail})")


def _parquet_row(
    batch: pyarrow.RecordBatch, index: int, values: dict[str, Any], place: str
) -> Row | Unreadable:
    for column in batch.schema.names:
        try:
            values[column] = batch.column(column)[index].as_py()
        except (ValueError, ArithmeticError, LookupError, pyarrow.ArrowException) as error:
            # Invalid UTF-8, a date after the year 9999, an unknown time zone.
            detail = " ".join(str(error).split())[:200]
            return Unreadable(place, f"has a value in {column} that cannot be read ({detail})")
    return Row(place, values)


READERS: dict[str, Reader] = {
    "jsonl": json_lines,
    "ndjson": json_lines,
    "csv": csv_rows,
    "tsv": partial(csv_rows, delimiter="\t"),
    "json": listed_rows,
    "yml": listed_rows,
    "yaml": listed_rows,
}
"""Readers by file suffix; any other file is a text."""


def _lines(stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield line numbers and lines with their ends; None for a line above `max_bytes`."""
    number = 0
    while line := stream.readline(max_bytes + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(CHUNK)
            yield number, None
        else:
            yield number, line


def _complete(stream: BinaryIO, name: str, max_bytes: int, fix: str) -> str | Unreadable:
    content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        return too_long(name, max_bytes, fix)
    return _decoded(content, name, max_bytes)


def _decoded(content: bytes | None, place: str, max_bytes: int) -> str | Unreadable:
    if content is None:
        return too_long(place, max_bytes)
    text = content.decode("utf-8-sig", errors="surrogateescape")
    found = as_record(text, place, len(content))
    return found if isinstance(found, Unreadable) else text


def _parsed(text: str, place: str, kind: str) -> Row | Unreadable:
    try:
        if kind == "JSON":
            return Row(place, json.loads(text))
        # The C parser is ten times as fast.
        return Row(place, yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        detail = " ".join(str(error).split())[:200]
        if isinstance(error, json.JSONDecodeError) and ", line " in place:
            detail = f"{error.msg}, column {error.colno}"  # the place has the line
        fix = "correct it"
        if detail.startswith("Extra data") and place.endswith((".json", ".json.gz")):
            fix = "rename it to .jsonl if every line is a record"
        return Unreadable(place, f"is not valid {kind} ({detail})", fix)


def _separated(stream: BinaryIO, name: str, separator: re.Pattern[str], max_bytes: int) -> Rows:
    """Split a text of any length: `buffer[start:]` is the document being read."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    buffer, start, search, line = "", 0, 0, 1
    cut_lines: int | None = None  # lines already discarded of a document above `max_bytes`
    ended = False
    while not ended:
        chunk = text.read(CHUNK)
        ended = not chunk
        buffer += chunk
        match = separator.search(buffer, search)
        # Text that is not read yet may extend a match near the end of the buffer.
        while match and (ended or match.end() <= len(buffer) - CONTEXT):
            yield from _piece(buffer[start : match.start()], name, line, cut_lines, max_bytes)
            line += buffer.count("\n", start, match.end()) + (cut_lines or 0)
            start, cut_lines = match.end(), None
            search = max(start, match.start() + 1)
            match = separator.search(buffer, search) if search <= len(buffer) else None
        if ended:
            yield from _piece(buffer[start:], name, line, cut_lines, max_bytes)
        if match is None:
            search = max(search, len(buffer) - CONTEXT)
        limit = 0 if cut_lines is not None else max_bytes
        if len(buffer) - start > limit + 2 * CONTEXT:
            end = len(buffer) - 2 * CONTEXT
            cut_lines = (cut_lines or 0) + buffer.count("\n", start, end)
            start = end
        done = max(0, start - CONTEXT)
        buffer, start, search = buffer[done:], start - done, max(search, start) - done


def _piece(text: str, name: str, line: int, cut_lines: int | None, max_bytes: int) -> Rows:
    """Yield the text between two separators unless it is empty; its place is its first line."""
    if cut_lines is not None:
        yield too_long(f"{name}, line {line}", max_bytes, "split it, correct `separator`")
    elif text.strip():
        line += text.count("\n", 0, len(text) - len(text.lstrip()))
        yield Row(f"{name}, line {line}", text)


class _BadLineError(Exception):
    def __init__(self, unreadable: Unreadable) -> None:
        super().__init__(unreadable.problem)
        self.unreadable = unreadable


class _CsvLines:
    """Lines for csv.reader that continue after an unreadable line (a generator cannot)."""

    def __init__(self, stream: BinaryIO, name: str, max_bytes: int) -> None:
        self._lines = _lines(stream, max_bytes)
        self._name, self._max_bytes = name, max_bytes
        self._number, self._row, self._row_bytes = 0, 1, 0

    def next_row(self) -> str:
        """Return the place of the row that starts on the next line."""
        self._row, self._row_bytes = self._number + 1, 0
        return f"{self._name}, line {self._row}"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        self._number, line = next(self._lines)
        place = f"{self._name}, line {self._number}"
        text = _decoded(line, place, self._max_bytes)
        self._row_bytes += len(line or b"")
        if self._row_bytes > self._max_bytes:
            place = f"{self._name}, line {self._row}"
            text = too_long(place, self._max_bytes, "close its quotes")
        if isinstance(text, Unreadable):
            raise _BadLineError(text)
        return text
