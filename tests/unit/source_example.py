"""A domain of one source, and the documents that it gives."""

from pathlib import Path

import yaml

from pruneflow.data.sources import Document, load_domains, read_source
from pruneflow.locked_files import Reading


def write_domains(root: Path, **source: object) -> Path:
    path = root / "domains.yaml"
    path.write_text(yaml.safe_dump({"topic": [{"licence": "MIT", **source}]}))
    return path


def documents(root: Path, reading: Reading | None = None, **source: object) -> list[Document]:
    (parsed,) = load_domains(write_domains(root, **source))["topic"]
    return list(read_source("topic", parsed, reading or Reading(root, None)))


def texts(root: Path, reading: Reading | None = None, **source: object) -> list[str]:
    return [document.text for document in documents(root, reading, **source)]
