"""From rows to texts: each through the template of its source, with its place and its group."""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from string import Formatter
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pruneflow.settings.base import Count, Settings


@dataclass(frozen=True)
class Row:
    """What stands at one place of a file: fields, lines or a text."""

    place: str
    value: Any


@dataclass(frozen=True)
class Record:
    """A text, where it stands, and the group it belongs to ("" for none)."""

    text: str
    place: str
    group: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A place that gives no text: what is wrong there, and how to mend it."""

    place: str
    problem: str
    mend: str = "correct it"
    reason: Literal["malformed", "binary"] = "malformed"


class RecordFormat(Settings):
    """How the records of a file become documents."""

    template: str = Field(
        "{text}", description="The document, with a record's fields in braces ({{ for a brace)."
    )
    group: str | None = Field(
        None,
        description="Template of what related records share, e.g. `{title}`: documents of one "
        "group are never in two splits.",
    )
    group_match: str | None = Field(
        None,
        description="Regular expression whose first group (or whole match) in `group` counts; "
        "a record without a match stands alone.",
    )
    records: str | None = Field(
        None, description="Where a .yml or .json file keeps its list, e.g. `a.b`; else the whole."
    )
    separator: str | None = Field(
        None,
        description="Regular expression (^ and $ are those of lines) between the documents of a "
        "text file; a whole file is one document when unset.",
    )
    join: Count = Field(
        1, description="Neighbouring records put together, for records too short to stand alone."
    )
    remove: str | None = Field(None, description="Regular expression deleted from every record.")

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
            raise ValueError(f"{where} is no regular expression: {error}") from None
        if expression == "" or (info.field_name == "separator" and compiled.search("")):
            raise ValueError(f"{where} is found in an empty text, so everywhere: name a character")
        return expression

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.group_match and not self.group:
            raise ValueError("group_match means nothing without group: add it, e.g. {title}")
        return self

    @property
    def fields(self) -> list[str]:
        """Names of the fields that `template` and `group` use, each once."""
        parts = [*Formatter().parse(self.template), *Formatter().parse(self.group or "")]
        return list(dict.fromkeys(part[1] for part in parts if part[1] is not None))


def too_long(place: str, max_bytes: int, mend: str = "split it") -> Unreadable:
    """Refuse a line, record or text that is longer than `max_bytes`."""
    size = f"{max_bytes / 2**20:g} MB"
    return Unreadable(place, f"is longer than {size}", f"{mend}, or raise documents.max_record_mb")


def fill(
    rows: Iterable[Row | Unreadable], settings: RecordFormat, max_bytes: int
) -> Iterator[Record | Unreadable]:
    """Put rows through the template; join neighbours of one group, equal ones only once.

    A row that is a list stands for its lines, one that is a string for itself; both have the one
    field `text`. A field that is a list stands for its lines; one that is null is empty. An empty
    record comes as an empty text and is never joined.

    Args:
        rows: of one file, in order.
        settings: the template and the rest.
        max_bytes: longer texts are unreadable.
    """
    together: list[Record] = []
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
        if together and together[0].group != record.group:
            yield _joined(together)
            together = []
        together.append(record)
        if len(together) == settings.join:
            yield _joined(together)
            together = []
    if together:
        yield _joined(together)


def docstrings(content: bytes, file: str) -> Record | Unreadable:
    """Return the docstrings of a Python file's public names, each below its name."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError) as error:
        return Unreadable(file, f"is not Python source ({error})", "leave it out")
    return Record("\n\n".join(_docstrings(tree, "")), file)


def checked(text: str, place: str, max_bytes: int) -> Record | Unreadable:
    """Return a text as it is, unless it is binary, too long or not what UTF-8 can hold.

    Bytes that are not UTF-8 come as lone surrogates (`errors="surrogateescape"`).
    """
    if "\0" in text:
        return Unreadable(place, "is binary, not UTF-8 text", "convert or remove it", "binary")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        return Unreadable(place, "is not UTF-8 text", "convert it, e.g. with iconv")
    return too_long(place, max_bytes) if size > max_bytes else Record(text, place)


def _docstrings(node: Any, name: str) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text:
        yield f"{name}\n\n{text}" if name else text
    for child in node.body:
        documented = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and not child.name.startswith("_"):
            yield from _docstrings(child, f"{name}.{child.name}" if name else child.name)


def _joined(records: list[Record]) -> Record:
    text = "\n\n".join(record.text for record in records)
    return Record(text, records[0].place, records[0].group)


def _filled(row: Row, settings: RecordFormat, max_bytes: int) -> Record | Unreadable:
    value = row.value
    if isinstance(value, list | str):
        value = {"text": value}
    elif not isinstance(value, dict):
        return Unreadable(row.place, "is neither fields, lines nor text")
    values: dict[str, str] = {}
    for name in settings.fields:
        if name not in value:
            known = ", ".join(sorted(str(key) for key in value)) or "none"
            return Unreadable(
                row.place,
                f"has no field {name} (it has {known})",
                "correct `template`" if f"{{{name}}}" in settings.template else "correct `group`",
            )
        field = value[name]
        if isinstance(field, bytes):
            return Unreadable(row.place, f"holds bytes in {name}", "leave it out", "binary")
        if isinstance(field, dict):
            return Unreadable(row.place, f"holds fields, not text, in {name}")
        lines = field if isinstance(field, list) else ["" if field is None else field]
        values[name] = "\n".join(str(line) for line in lines)
    text = _formatted(settings.template, values).strip()
    if settings.remove:
        text = re.sub(settings.remove, "", text).strip()
    record = checked(text, row.place, max_bytes)
    if isinstance(record, Unreadable) or settings.group is None:
        return record
    return Record(text, row.place, _group(_formatted(settings.group, values), settings))


def _formatted(template: str, values: dict[str, str]) -> str:
    return "".join(
        literal + ("" if name is None else values[name])
        for literal, name, _, _ in Formatter().parse(template)
    )


def _group(text: str, settings: RecordFormat) -> str:
    if settings.group_match:
        match = re.search(settings.group_match, text)
        text = "" if match is None else (match[1] if match.re.groups else match[0]) or ""
    # What UTF-8 cannot hold could not be hashed.
    return text.strip().encode(errors="replace").decode()
