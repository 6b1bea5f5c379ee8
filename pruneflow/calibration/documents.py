"""The table of documents: drawn from sources, cleaned, free of duplicates and of questions."""

import hashlib
import platform
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import staged_directory, verify_manifest, write_manifest
from pruneflow.calibration.packages import Reading, load_lock
from pruneflow.calibration.questions import Sequences, question_sequences, shared_sequence
from pruneflow.calibration.sources import (
    Document,
    Source,
    load_domains,
    read_source,
)
from pruneflow.config import DocumentSettings
from pruneflow.errors import InputError
from pruneflow.progress import track

if TYPE_CHECKING:
    import pandas

TABLE = "documents.parquet"
COLUMNS = ("domain", "source", "licence", "language", "split", "sha256", "text")
SPLITS = ("calibration", "validation", "test")

# Control characters but tab and newline; the NUL and escape codes that break terminals and tables.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_LINE_END = re.compile("\r\n|\r|\u2028|\u2029|\x0c")


@dataclass
class _Domain:
    """The documents of one domain and what was counted while they were read."""

    rows: list[dict[str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0


def build_documents(
    settings: DocumentSettings,
    domains_file: Path,
    lock_file: Path,
    benchmarks: Path,
    out: Path,
    root: Path,
) -> dict[str, Any]:
    """Write `documents.parquet` and its manifest: the text that everything later draws from.

    Of equal documents the first in the order of `settings.domains` stays. A document that shares
    13 words in a row with an evaluation question is dropped.

    Args:
        settings: domains, limits and shares.
        domains_file: the sources of every domain.
        lock_file: sha256 of the package files.
        benchmarks: folder of the evaluation questions.
        out: the folder to write.
        root: the workspace, which `data/text` is relative to.

    Returns:
        The manifest.

    Raises:
        InputError: a domain is unknown, or a source of it is missing, empty or too small; names
            domain, source and the way out.
    """
    known = load_domains(domains_file)
    for name in settings.domains:
        if name not in known:
            raise InputError(
                f"domain {name} is not in {domains_file} (known: {', '.join(sorted(known))}): "
                "add it there, or correct documents.domains"
            )
        if not known[name]:
            raise InputError(f"domain {name} has no source: add one in {domains_file}")
    reading = Reading(root, load_lock(lock_file))
    sequences = question_sequences(benchmarks)
    seen: set[str] = set()
    domains: dict[str, _Domain] = {}
    for name in track(settings.domains, "documents"):
        candidates = _candidates(name, known[name], reading)
        domains[name] = _read(name, candidates, settings, sequences, seen)
        _draw(name, domains[name], known[name], settings)
    rows = sorted(
        (row for domain in domains.values() for row in domain.rows),
        key=lambda row: (row["domain"], row["sha256"]),
    )
    with staged_directory(out) as folder:
        _write_table(rows, folder / TABLE)
        return write_manifest(
            folder,
            domains={name: _facts(domain) for name, domain in domains.items()},
            settings=settings.model_dump(mode="json"),
            python=platform.python_version(),
            package_files=reading.package_files,
            text_files=reading.text_files,
        )


def read_documents(directory: Path) -> "pandas.DataFrame":
    """Read the table of documents after checking its manifest; every column holds strings.

    Raises:
        DamagedArtifactError: the table is missing or not the manifest's.
    """
    import pyarrow.parquet

    verify_manifest(directory)
    return pyarrow.parquet.read_table(directory / TABLE).to_pandas()


def clean(text: str) -> str:
    """Normalise to NFC, with plain line ends, no control characters and no space at the ends."""
    return _CONTROL.sub("", _LINE_END.sub("\n", unicodedata.normalize("NFC", text))).strip()


def cut(text: str, characters: int) -> str:
    """Shorten a text to at most `characters`, at a line end where there is one."""
    if len(text) <= characters:
        return text
    end = text.rfind("\n", 0, characters + 1)
    return text[: end if end > 0 else characters].rstrip()


def duplicate_key(text: str) -> str:
    """Return what two equal documents share: letter case and white space do not count."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()


def split_of(sha256: str, validation_share: float, test_share: float) -> str:
    """Return the split of a document: its own hash decides, never a seed."""
    position = int(sha256[-12:], 16) / 16**12
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "calibration"


def _candidates(name: str, sources: list[Source], reading: Reading) -> Iterator[Document]:
    for source in sources:
        yield from read_source(name, source, reading)


def _read(
    name: str,
    candidates: Iterable[Document],
    settings: DocumentSettings,
    sequences: Sequences,
    seen: set[str],
) -> _Domain:
    """Clean the candidates and drop what cannot be used; `seen` goes from domain to domain."""
    domain = _Domain()
    for document in candidates:
        whole = clean(document.text)
        text = cut(whole, settings.max_characters)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        if len(text) < settings.min_characters:
            domain.dropped["too_short"] += 1
        elif duplicate_key(text) in seen:
            domain.dropped["duplicate"] += 1
        elif shared_sequence(text, sequences) is not None:
            domain.dropped["evaluation_overlap"] += 1
        else:
            seen.add(duplicate_key(text))
            domain.cut += len(text) < len(whole)
            split = split_of(sha256, settings.validation_share, settings.test_share)
            values = (name, document.source, document.licence, document.language, split)
            domain.rows.append(dict(zip(COLUMNS, (*values, sha256, text), strict=True)))
    return domain


def _draw(name: str, domain: _Domain, sources: list[Source], settings: DocumentSettings) -> None:
    """Keep at most `max_per_domain` documents: test ones by hash, the others by seeded hash."""
    quota = {
        "validation": max(1, round(settings.max_per_domain * settings.validation_share)),
        "test": max(1, round(settings.max_per_domain * settings.test_share)),
    }
    quota["calibration"] = max(1, settings.max_per_domain - sum(quota.values()))
    kept = []
    for split in SPLITS:
        rows = [row for row in domain.rows if row["split"] == split]
        seed = "test" if split == "test" else settings.seed
        rows.sort(key=lambda row: _order(row["sha256"], seed))
        kept += rows[: quota[split]]
        if not rows[: quota[split]]:
            raise InputError(
                f"domain {name} has {len(domain.rows)} usable documents from "
                f"{', '.join(source.name for source in sources)}, and none for {split}"
                f"{_reasons(domain.dropped)}: add text or sources to {name} in configs/domains.yaml"
            )
    if len(kept) < len(domain.rows):
        domain.dropped["not_drawn"] = len(domain.rows) - len(kept)
    domain.rows = kept


def _order(sha256: str, seed: int | str) -> str:
    return hashlib.sha256(f"{seed}:{sha256}".encode()).hexdigest()


def _reasons(dropped: Counter[str]) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return f" (dropped: {counts})" if counts else ""


def _facts(domain: _Domain) -> dict[str, Any]:
    rows = domain.rows
    return {
        "documents": len(rows),
        "characters": sum(len(row["text"]) for row in rows),
        "languages": dict(Counter(row["language"] for row in rows)),
        "licences": sorted({row["licence"] for row in rows}),
        "sources": sorted({row["source"] for row in rows}),
        "splits": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
        "cut": domain.cut,
        "dropped": dict(domain.dropped),
    }


def _write_table(rows: list[dict[str, str]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(column, pyarrow.string()) for column in COLUMNS])
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    pyarrow.parquet.write_table(table, path, compression="zstd")
