"""Write pages from code and results: `python -m docs.generate`, which `make docs` runs first.

Settings come from the schemas of their pydantic models, metrics from their functions, commands from
typer's own writer of Markdown, figures from benchmarks/results. The pages are committed, so that
they can be read without a build; a test compares them with what this writes.
"""

import inspect
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from docs.measured import benchmarks_page
from docs.scale import scale_page
from pruneflow.data.record_template import RecordFormat
from pruneflow.data.source_kinds import KINDS, Source
from pruneflow.judge.gates import GatesSettings
from pruneflow.judge.metrics import METRICS, Metric
from pruneflow.settings.pipeline import PipelineSettings
from pruneflow.sweep_recipes import SweepSettings

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "benchmarks/results"
NOTE = "<!-- Written by `make docs`: change the program and run it again. -->\n\n"
SETTINGS = """# Every setting

What each file of `configs/` may hold. An unknown key, and a value of another type or out of range,
is refused in one line that names it. `configs/pipeline.yaml` must hold every key, since DVC reads
it too; `pruneflow configure PROFILE` writes it whole, and `pruneflow plan` its rounds. Other pages
write `calibration.weights` for `weights` in the section `calibration`.
"""
GATES = """# Gates and metrics

`configs/gates.yaml` lists what a pruned model must reach; [how gates work](../evaluation.md#gates).

## configs/gates.yaml

"""
METRIC_TABLE = """
## Metrics

What `metric` may name. Parity is the value when both models are equal; only a metric that has one,
and so a better side, can be compared by `improves`. The last column says whether a gate can hold it
`against: production`.

"""
COMMANDS = """# Every command

The same as `pruneflow COMMAND --help`. Exit code 0 is success, 1 a refusal by the gates or a
failure, 2 bad input, which is one line. `pruneflow --install-completion` makes the Tab key complete
commands, versions, rounds and profiles.
"""


EXAMPLES = re.compile(r"^Examples?:\s+(pruneflow .*(?:\n +pruneflow .*)*)$", re.MULTILINE)
"""The commands at the end of a command's help."""

NAME = "^[a-zA-Z]["
"""How the patterns of names in `pruneflow/settings/base.py` begin."""


def pages() -> dict[str, str]:
    """Return the text of every generated page, by its path in docs/."""
    texts = {
        "reference/settings.md": "\n".join([SETTINGS, *_all_settings()]),
        "reference/gates.md": GATES
        + "\n".join([*_models(GatesSettings), METRIC_TABLE, *_metrics()]),
        "reference/commands.md": COMMANDS + _commands(),
        "benchmarks.md": benchmarks_page(RESULTS),
        "scale.md": scale_page(RESULTS),
    }
    return {name: f"{NOTE}{text.rstrip()}\n" for name, text in texts.items()}


def _all_settings() -> Iterator[str]:
    yield "## configs/pipeline.yaml\n"
    yield from _models(PipelineSettings)
    yield "\n## configs/domains.yaml\n"
    yield "A mapping of domain names to lists of sources; `kind` says which of these a source is.\n"
    yield "### every kind\n"
    yield from _fields(Source)
    records = [name for name, (source, _) in KINDS.items() if issubclass(source, RecordFormat)]
    yield f"### kinds that read records: {', '.join(records)}\n"
    yield from _fields(RecordFormat)
    shared = {"kind", *Source.model_fields, *RecordFormat.model_fields}
    for name, (source, _) in KINDS.items():
        yield f"### kind: {name}\n"
        yield f"{inspect.getdoc(source)}\n"
        yield from _fields(source, shared)
    yield "\n## configs/sweep.yaml\n"
    yield from _models(SweepSettings)


def _fields(model: type[BaseModel], without: Collection[str] = ()) -> Iterator[str]:
    schema = model.model_json_schema()
    fields = {key: field for key, field in schema["properties"].items() if key not in without}
    yield from _table({**schema, "properties": fields}, schema)


def _models(model: type[BaseModel]) -> Iterator[str]:
    """Yield a table of the settings that are values, then a section for each that is a model."""
    schema = model.model_json_schema()
    sections = {key: part for key, field in schema["properties"].items() if (part := _part(field))}
    plain = {key: field for key, field in schema["properties"].items() if key not in sections}
    if plain:
        yield from _table({**schema, "properties": plain}, schema)
    for key, (reference, many) in sections.items():
        section = schema["$defs"][reference]
        yield f"### {key}{many}\n"
        yield f"{inspect.cleandoc(section['description'])}\n"
        yield from _table(section, schema)


def _part(field: dict[str, Any]) -> tuple[str, str] | None:
    """The model behind a field, and what stands for the name or number where there are many."""
    for inner, many in (
        (field, ""),
        (field.get("additionalProperties"), ".NAME"),
        (next(iter(field.get("patternProperties", {}).values()), None), ".NAME"),
        (field.get("items"), "[]"),
    ):
        if isinstance(inner, dict) and "$ref" in inner:
            return inner["$ref"].rpartition("/")[2], many
    return None


def _table(model: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """Two columns, which a phone has room for."""
    yield "| setting | meaning, type, default |"
    yield "|---|---|"
    for key, field in model["properties"].items():
        default = "required" if key in model.get("required", []) else _default(field)
        said = " ".join(field.get("description", "").split())
        meaning = _escaped(f"{said} <br>{_kind(field, schema)}; {default}")
        yield f"| `{key}` | {meaning} |"
    yield ""


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:  # made by a factory
        return "empty by default"
    value = field["default"]
    return f"default `{value if isinstance(value, str) else json.dumps(value)}`"


def _kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if "$ref" in field:
        return _kind(schema["$defs"][field["$ref"].rpartition("/")[2]], schema)
    if "anyOf" in field:
        return ", or ".join(_kind(each, schema) for each in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        least = ", at least one" if field.get("minItems") else ""
        return f"list{least}: {_kind(field['items'], schema)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties") or next(
            iter(field.get("patternProperties", {}).values()), {}
        )
        return f"by name: {_kind(values, schema)}" if isinstance(values, dict) else "by name"
    if field.get("pattern", "").startswith(NAME):
        return "name"
    names = {"integer": "whole number", "number": "number", "string": "text", "null": "null"}
    words = names.get(field.get("type", ""), "any value")
    if field.get("type") == "boolean":
        words = "`true` or `false`"
    return ", ".join([words, *_bounds(field)])


def _bounds(field: dict[str, Any]) -> Iterator[str]:
    for key, words in (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    ):
        if key in field:
            yield f"{words} {field[key]:g}"
    if "pattern" in field and not field["pattern"].startswith(NAME):
        yield f"like `{field['pattern']}`"


def _metrics() -> Iterator[str]:
    yield "| metric | what it is | parity | better | against production |"
    yield "|---|---|---|---|---|"
    for name, found in METRICS.items():
        said = _escaped((inspect.getdoc(found.measure) or "").split("\n\n")[0].replace("\n", " "))
        parity = "none" if found.parity is None else f"{found.parity:g}"
        held = "yes" if found.of_two_records else "no"
        spelt = f"`{name}{_after_dot(found)}`"
        yield f"| {spelt} | {said} | {parity} | {found.better or 'none'} | {held} |"


def _after_dot(found: Metric) -> str:
    return "".join(
        f".{part.upper()}" for part in list(inspect.signature(found.measure).parameters)[1:]
    )


def _commands() -> str:
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from flows.cli import app

    command = get_command(app)
    with command.make_context("pruneflow", [], resilient_parsing=True) as context:
        text = get_docs_for_click(obj=command, ctx=context, name="pruneflow")
    # The page has its own title; only the commands' sections are wanted. The list of commands above
    # them would repeat each first sentence, cut off.
    sections = text[text.index("\n## ") :].replace("\b", "")
    return EXAMPLES.sub(_fenced, sections)


def _fenced(examples: re.Match[str]) -> str:
    lines = [line.strip() for line in examples[1].splitlines()]
    return "\n".join(["Examples:", "", "```sh", *lines, "```"])


def _escaped(text: str) -> str:
    """For a cell of a table."""
    return text.replace("|", "\\|")


def main() -> None:
    """Write the pages that are not as they should be."""
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
