"""From the bytes of one file to texts: records through a template, or the file as it is."""

import ast
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from string import Formatter
from typing import Any

import yaml
from pydantic import Field, field_validator

from pruneflow.errors import InputError
from pruneflow.schema import Count, Settings


class RecordFormat(Settings):
    """How the records of a file become documents."""

    template: str = Field(
        "{text}", description="The document, with a record's fields in braces ({{ for a brace)."
    )
    records: str | None = Field(
        None, description="Where a .yml or .json file keeps its list, e.g. `a.b`; else the whole."
    )
    join: Count = Field(
        1, description="Neighbouring records put together, for records too short to stand alone."
    )
    remove: str | None = Field(None, description="Regular expression deleted from every record.")

    @field_validator("template")
    @classmethod
    def _parts(cls, template: str) -> str:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
        if not fields:
            raise ValueError(f"template {template!r} names no field: write one, e.g. {{text}}")
        for name, spec, conversion in fields:
            # Attributes and items ({a.b}, {a[0]}) would reach into Python objects.
            if not name or spec or conversion or re.search(r"[.\[\]]", name):
                raise ValueError(f"template {template!r}: fields are plain names, as in {{text}}")
        return template

    @field_validator("remove")
    @classmethod
    def _expression(cls, remove: str | None) -> str | None:
        try:
            re.compile(remove or "")
        except re.error as error:
            raise ValueError(f"remove {remove!r} is no regular expression: {error}") from None
        return remove


def read_records(content: bytes, file: str, settings: RecordFormat) -> Iterator[str]:
    """Yield the texts of a file: one for each record of a data file, else the whole file.

    Data files are .jsonl, .json, .csv, .yml and .yaml; any other file is a text.

    Raises:
        InputError: the file is not UTF-8 or not what its name says, or a record lacks a field
            of the template; names file, row and field.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not UTF-8 text (byte {error.start}): convert it, e.g. with iconv"
        ) from None
    suffix = file.rsplit(".", 1)[-1].lower()
    if suffix == "jsonl":
        yield from fill(_json_lines(text, file), file, settings)
    elif suffix in ("json", "yml", "yaml"):
        yield from fill(_listed(_parse(text, file, suffix), file, settings), file, settings)
    elif suffix == "csv":
        yield from fill(_csv_rows(text, file), file, settings)
    else:
        yield from fill([text], file, settings)


def fill(records: Iterable[Any], file: str, settings: RecordFormat) -> Iterator[str]:
    """Put records through the template; join neighbours, equal ones only once.

    A record that is a list stands for its lines, one that is a string for itself; both have
    the one field `text`. A field that is null counts as empty.
    """
    group: list[str] = []
    seen: set[str] = set()
    for row, record in enumerate(records, start=1):
        text = _filled(record, row, file, settings).strip()
        if settings.remove:
            text = re.sub(settings.remove, "", text).strip()
        if not text or (settings.join > 1 and text in seen):
            continue
        seen.add(text)
        group.append(text)
        if len(group) == settings.join:
            yield "\n\n".join(group)
            group = []
    if group:
        yield "\n\n".join(group)


def docstrings(content: bytes, file: str) -> str:
    """Return the docstrings of a Python file's public names, each below its name."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{file} is not Python source ({error}): leave it out") from None
    return "\n\n".join(_docstrings(tree, ""))


def _docstrings(node: Any, name: str) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text:
        yield f"{name}\n\n{text}" if name else text
    for child in node.body:
        documented = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and not child.name.startswith("_"):
            yield from _docstrings(child, f"{name}.{child.name}" if name else child.name)


def _filled(record: Any, row: int, file: str, settings: RecordFormat) -> str:
    if isinstance(record, list):
        record = {"text": "\n".join(str(line) for line in record)}
    elif isinstance(record, str):
        record = {"text": record}
    elif not isinstance(record, dict):
        raise InputError(f"{file}, record {row}: is neither fields, lines nor text: correct it")
    parts = []
    for literal, name, _, _ in Formatter().parse(settings.template):
        parts.append(literal)
        if name is None:
            continue
        if name not in record:
            known = ", ".join(sorted(str(key) for key in record))
            raise InputError(
                f"{file}, record {row}: has no field {name} (it has {known}): correct `template`"
            )
        value = record[name]
        parts.append("" if value is None else str(value))
    return "".join(parts)


def _json_lines(text: str, file: str) -> Iterator[Any]:
    # Not splitlines(): JSON strings may hold U+2028 and the like.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _parse(line, f"{file}, line {number}", "json")


def _csv_rows(text: str, file: str) -> Iterator[dict[str, str]]:
    try:
        yield from csv.DictReader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise InputError(f"{file} is not valid CSV ({error}): correct it") from None


def _parse(text: str, where: str, suffix: str) -> Any:
    try:
        if suffix == "json":
            return json.loads(text)
        # The C parser reads a corpus in a tenth of the time.
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        detail = " ".join(str(error).split())
        kind = "JSON" if suffix == "json" else "YAML"
        raise InputError(f"{where} is not valid {kind} ({detail}): correct it") from None


def _listed(value: Any, file: str, settings: RecordFormat) -> list[Any]:
    for key in (settings.records or "").split("."):
        if not key:
            continue
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"{file}: has no {settings.records}: correct `records`")
        value = value[key]
    if not isinstance(value, list):
        raise InputError(f"{file}: holds no list of records: say where it is with `records`")
    return value
