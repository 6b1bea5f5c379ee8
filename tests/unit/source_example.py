"""A domain of one source, and the documents that it gives."""

from pathlib import Path

import pytest
import yaml

from pruneflow.data.record_template import TextRecord, Unreadable
from pruneflow.data.source_kinds import Source
from pruneflow.data.sources import load_domains, read_source
from pruneflow.locked_files import Reading


def install(
    monkeypatch: pytest.MonkeyPatch, site: Path, package: str, files: dict[str, str]
) -> Path:
    """Install a package that fails when it is imported."""
    files = {"__init__.py": "raise RuntimeError('imported')\n", **files}
    for name, content in files.items():
        path = site / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(str(site))
    return site / package


def write_domains(root: Path, **source: object) -> Path:
    path = root / "domains.yaml"
    path.write_text(yaml.safe_dump({"topic": [{"licence": "MIT", **source}]}))
    return path


def parsed(root: Path, **source: object) -> Source:
    (found,) = load_domains(write_domains(root, **source))["topic"]
    return found


def documents(
    root: Path, reading: Reading | None = None, **source: object
) -> list[TextRecord | Unreadable]:
    return list(read_source("topic", parsed(root, **source), reading or Reading(root, None)))


def texts(root: Path, reading: Reading | None = None, **source: object) -> list[str]:
    return [document.text for document in documents(root, reading, **source)]
