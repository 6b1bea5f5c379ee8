"""Records of a source: rows of a file, formatted by the source's template."""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from string import Formatter
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pruneflow.settings.base import Count, Settings

SCALARS = (str, bool, int, float, Decimal, date, time, timedelta, UUID, type(None))
"""Types of fields that have one reading as text."""


@dataclass(frozen=True)
class Row:
    """The value at one place of a file: fields, lines or a text."""

    place: str
    value: Any


@dataclass(frozen=True)
class TextRecord:
    """A text read from a source.

    Attributes:
        text: the text as read; "" for an empty record.
        place: the file, and the line, record or row in it.
        group: records with the same group are always in the same split; "" for none.
    """

    text: str
    place: str
    group: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A line, record or file that cannot be read.

    Attributes:
        place: the file, and the line, record or row in it.
        problem: what is wrong with it.
        fix: how to fix it.
        reason: the reason in the table of dropped documents.
    """

    place: str
    problem: str
    fix: str = "correct it"
    reason: Literal["malformed", "binary"] = "malformed"


class RecordFormat(Settings):
    """How the records of a file become documents."""

    template: str = Field(
        "{text}",
        description="Text of the document, with the record's fields in braces ({{ for a brace).",
    )
    group: str | None = Field(
        None,
        description="Template of a value shared by related records, e.g. `{title}`: records with "
        "the same group are always in the same split.",
    )
    group_match: str | None = Field(
        None,
        description="Regular expression applied to `group`: its first group (or the match) is "
        "used; a record without a match has no group.",
    )
    records: str | None = Field(
        None,
        description="Path of the list in a .yml or .json file, e.g. `a.b`; by default the file is "
        "the list.",
    )
    separator: str | None = Field(
        None,
        description="Regular expression (^ and $ match at lines) that separates the documents of a "
        "text file; by default the file is one document.",
    )
    join: Count = Field(
        1, description="Number of consecutive records to join into a document, for short records."
    )
    remove: str | None = Field(None, description="Regular expression to delete from every record.")

    @field_validator("template", "group")
    @classmethod
    def _parts(cls, template: str | None, info: ValidationInfo) -> str | None:
        if template is None:
            return None
        where = f"{info.field_name} {template!r}"
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"{where}: {error}: write {{{{ or }}}} for a brace") from None
        fields = [part[1:] for part in parts if part[1] is not None]
        if not fields:
            raise ValueError(f"{where} names no field: write one, e.g. {{text}}")
        for name, spec, conversion in fields:
            # Attributes and items ({a.b}, {a[0]}) would reach into Python objects.
            if not name or spec or conversion or re.search(r"[.\[\]]", name):
                raise ValueError(f"{where}: fields are plain names, as in {{text}}")
        return template

    @field_validator("remove", "group_match", "separator")
    @classmethod
    def _expression(cls, expression: str | None, info: ValidationInfo) -> str | None:
        where = f"{info.field_name} {expression!r}"
        try:
            compiled = re.compile(expression or "x")
        except re.error as error:
            raise ValueError(f"{where} is not a regular expression: {error}: correct it") from None
        if expression == "" or (info.field_name == "separator" and compiled.search("")):
            raise ValueError(f"{where} matches an empty text, so everywhere: add a character")
        return expression

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.group_match and not self.group:
            raise ValueError("group_match has no effect without group: add it, e.g. {title}")
        return self

    @property
    def fields(self) -> list[str]:
        """Names of the fields in `template` and `group`, without repetition."""
        parts = [*Formatter().parse(self.template), *Formatter().parse(self.group or "")]
        return list(dict.fromkeys(part[1] for part in parts if part[1] is not None))


def too_long(place: str, max_bytes: int, fix: str = "split it") -> Unreadable:
    """An unreadable line, record or text, because it is longer than `max_bytes`."""
    size = f"{max_bytes / 2**20:g} MB"
    return Unreadable(place, f"is longer than {size}", f"{fix}, or raise documents.max_record_mb")


def fill(
    rows: Iterable[Row | Unreadable], settings: RecordFormat, max_bytes: int
) -> Iterator[TextRecord | Unreadable]:
    """Format rows by the template, and join consecutive records of a group without duplicates.

    A row that is a string or a list of lines has the single field `text`. A field that is a list of
    lines is joined by line ends; null is empty. A conversation, a list of messages with `role` and
    `content`, becomes a paragraph "role: content" for each message. An empty record gives an empty
    text and is never joined.

    Args:
        rows: of one file, in order.
        settings: template, join and so on.
        max_bytes: longer texts are unreadable.
    """
    pending: list[TextRecord] = []
    seen: set[bytes] = set()
    for row in rows:
        record = row if isinstance(row, Unreadable) else _filled(row, settings, max_bytes)
        if isinstance(record, Unreadable) or settings.join == 1 or not record.text:
            yield record
            continue
        digest = hashlib.blake2b(record.text.encode(), digest_size=16).digest()
        if digest in seen:
            continue
        seen.add(digest)
        if pending and pending[0].group != record.group:
            yield _joined(pending)
            pending = []
        pending.append(record)
        if len(pending) == settings.join:
            yield _joined(pending)
            pending = []
    if pending:
        yield _joined(pending)


def docstrings(content: bytes, file: str) -> TextRecord | Unreadable:
    """Return the docstrings of a Python file's public names, each after its name."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError) as error:
        return Unreadable(file, f"is not Python source ({error})", "exclude it")
    return TextRecord("\n\n".join(_docstrings(tree, "")), file)


def as_record(text: str, place: str, max_bytes: int) -> TextRecord | Unreadable:
    """Return a text as a record, unless it is binary, too long or not valid UTF-8.

    Invalid bytes are lone surrogates in `text` (`errors="surrogateescape"`).
    """
    if "\0" in text:
        return Unreadable(place, "is binary, not UTF-8 text", "convert or remove it", "binary")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return Unreadable(place, "is not UTF-8 text", "convert it, e.g. with iconv")
    return too_long(place, max_bytes) if size > max_bytes else TextRecord(text, place)


def _docstrings(node: Any, name: str) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text:
        yield f"{name}\n\n{text}" if name else text
    for child in node.body:
        documented = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and not child.name.startswith("_"):
            yield from _docstrings(child, f"{name}.{child.name}" if name else child.name)


def _joined(records: list[TextRecord]) -> TextRecord:
    text = "\n\n".join(record.text for record in records)
    return TextRecord(text, records[0].place, records[0].group)


def _filled(row: Row, settings: RecordFormat, max_bytes: int) -> TextRecord | Unreadable:
    value = row.value
    if isinstance(value, list | str):
        value = {"text": value}
    elif not isinstance(value, dict):
        return Unreadable(row.place, "is not a mapping, a list of lines or a text")
    values: dict[str, str] = {}
    for name in settings.fields:
        if name not in value:
            known = ", ".join(sorted(str(key) for key in value)) or "none"
            return Unreadable(
                row.place,
                f"has no field {name} (it has {known})",
                "correct `template`" if f"{{{name}}}" in settings.template else "correct `group`",
            )
        field = _text(value[name], name, row.place)
        if isinstance(field, Unreadable):
            return field
        values[name] = field
    text = _formatted(settings.template, values).strip()
    if settings.remove:
        text = re.sub(settings.remove, "", text).strip()
    record = as_record(text, row.place, max_bytes)
    if isinstance(record, Unreadable) or settings.group is None:
        return record
    return TextRecord(text, row.place, _group(_formatted(settings.group, values), settings))


def _text(field: Any, name: str, place: str) -> str | Unreadable:
    """The text of a field: a scalar, a list of lines, or the turns of a conversation."""
    items = field if isinstance(field, list) else [field]
    if isinstance(field, list) and items and all(isinstance(item, dict) for item in items):
        turns = [_turn(item) for item in items]
        spoken = [turn for turn in turns if turn is not None]
        if len(spoken) == len(turns):
            return "\n\n".join(filter(None, spoken))
        return Unreadable(place, f"has a list of mappings that is not a conversation in {name}")
    unfit = next((item for item in items if not isinstance(item, SCALARS)), None)
    if unfit is None:
        return "\n".join("" if item is None else str(item) for item in items)
    if isinstance(unfit, bytes | bytearray):
        return Unreadable(place, f"has bytes in {name}", "exclude it", "binary")
    kind = "a mapping" if isinstance(unfit, dict) else f"a value of type {type(unfit).__name__}"
    return Unreadable(place, f"has {kind}, not text, in {name}")


def _turn(message: dict[str, Any]) -> str | None:
    """One turn as "role: content"; "" if it has no text, None if it is not one.

    A message has `role` and `content` (a text, or parts of which some have `text`), or `from` and
    `value`, as in ShareGPT's data.
    """
    role, content = ("role", "content") if "role" in message else ("from", "value")
    who, said = message.get(role), message.get(content)
    if isinstance(said, list) and all(isinstance(part, dict) for part in said):
        said = "\n".join(part["text"] for part in said if isinstance(part.get("text"), str))
    if not isinstance(who, str) or content not in message or not isinstance(said, str | None):
        return None
    return f"{who}: {said}" if said else ""


def _formatted(template: str, values: dict[str, str]) -> str:
    return "".join(
        literal + ("" if name is None else values[name])
        for literal, name, _, _ in Formatter().parse(template)
    )


def _group(text: str, settings: RecordFormat) -> str:
    if settings.group_match:
        match = re.search(settings.group_match, text)
        text = "" if match is None else (match[1] if match.re.groups else match[0]) or ""
    # Lone surrogates cannot be encoded, so they could not be hashed.
    return text.strip().encode(errors="replace").decode()
