"""The table of documents: drawn from sources, cleaned, free of duplicates and of questions."""

import platform
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from typing import Any, Self

import pandas
import pyarrow.parquet

from pruneflow.artifacts import staged_directory, verify_manifest, write_manifest
from pruneflow.data.cleaning import duplicate_key, sha256_text
from pruneflow.data.contamination import Sequences, question_sequences
from pruneflow.data.document_filter import Candidate, examine
from pruneflow.data.document_table import (
    COLUMNS,
    DROPPED_COLUMNS,
    SPLITS,
    Rows,
    Selection,
    candidate_rows,
    dropped_rows,
    selection,
)
from pruneflow.data.languages import SourceLanguage
from pruneflow.data.near_duplicates import Signatures
from pruneflow.data.personal_data import KINDS
from pruneflow.data.sources import Document, Source, known_domains, read_source
from pruneflow.errors import InputError
from pruneflow.locked_files import Malformed, Reading, load_lock
from pruneflow.progress import track
from pruneflow.settings.calibration import DocumentSettings

__all__ = [
    "COLUMNS",
    "DROPPED",
    "DROPPED_COLUMNS",
    "SPLITS",
    "TABLE",
    "build_documents",
    "duplicate_key",
    "read_documents",
    "split_of",
]

TABLE = "documents.parquet"
DROPPED = "dropped.parquet"
GROUP_DIGITS = 16


def build_documents(
    settings: DocumentSettings,
    domains_file: Path,
    lock_file: Path,
    questions_dir: Path,
    out: Path,
    root: Path,
) -> dict[str, Any]:
    """Write `documents.parquet`, `dropped.parquet` and a manifest: the text all else draws from.

    Of equal documents, and of near-duplicates, the first in the order of `settings.domains`
    stays. A document that shares 13 words in a row with an evaluation question is dropped.
    Memory hardly grows with the text.

    Args:
        settings: domains, limits and shares.
        domains_file: the sources of every domain.
        lock_file: what package files and hub sets may be read.
        questions_dir: folder of the evaluation questions.
        out: the folder to write.
        root: the workspace, which `data/text` is relative to.

    Returns:
        The manifest.

    Raises:
        InputError: a domain is unknown, or a source of it is missing, empty, malformed, of
            another language than it says or too small; names domain, source and the way out.
    """
    domains = known_domains(settings.domains, domains_file)
    reading = Reading(
        root, load_lock(lock_file), settings.malformed, settings.max_record_mb * 2**20
    )
    sequences = question_sequences(questions_dir)
    with staged_directory(out) as folder:
        work = folder / "work"
        work.mkdir()
        with Signatures(work) as signatures:
            with _Reader(work, settings, sequences, signatures) as reader:
                for name in track(settings.domains, "documents"):
                    for source in domains[name]:
                        reader.read(name, source, reading)
            with selection(work) as selected:
                selected.drop_equal()
                if settings.near_duplicate_similarity < 1:
                    selected.drop_near_duplicates(signatures, settings.near_duplicate_similarity)
                _refuse_useless_source(selected)
                selected.draw(settings)
                facts = _facts(selected, domains)
                selected.write_documents(folder / TABLE, settings.domains)
                selected.write_dropped(folder / DROPPED)
        rmtree(work)
        return write_manifest(
            folder,
            domains=facts,
            settings=settings.model_dump(mode="json"),
            python=platform.python_version(),
            package_files=reading.package_files,
            text_files=reading.text_files,
            hub=reading.hub,
            questions={
                "asked": len(sequences.questions),
                "unrecognisable": sequences.unrecognisable,
            },
        )


def read_documents(directory: Path) -> pandas.DataFrame:
    """Read the table of documents after checking its manifest; every column holds strings.

    Raises:
        DamagedArtifactError: the table is missing or not the manifest's.
    """
    verify_manifest(directory)
    return pyarrow.parquet.read_table(directory / TABLE).to_pandas()


def split_of(sha256: str, validation_share: float, test_share: float) -> str:
    """Return the split of a document: its own or its group's hash decides, never a seed."""
    position = int(sha256[-12:], 16) / 16**12
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "calibration"


class _Reader:
    """Reads sources into rows of candidates and of what is dropped, numbered in reading order."""

    def __init__(
        self, work: Path, settings: DocumentSettings, sequences: Sequences, signatures: Signatures
    ) -> None:
        self._settings, self._sequences, self._signatures = settings, sequences, signatures
        self._stack = ExitStack()
        self._candidates: Rows = self._stack.enter_context(candidate_rows(work))
        self._dropped: Rows = self._stack.enter_context(dropped_rows(work))
        self._read = self._kept = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def read(self, domain: str, source: Source, reading: Reading) -> None:
        """Read one source.

        Raises:
            InputError: it cannot be read, or is mostly of another language than it says.
        """
        language = SourceLanguage(source.language)
        for document in read_source(domain, source, reading):
            self._drop_malformed(domain, reading.malformed_records)
            candidate = examine(document, self._settings, self._sequences)
            language.checked += candidate.told
            if candidate.other:
                language.others[candidate.other] += 1
            if candidate.reason:
                self._drop(domain, document, candidate)
            else:
                self._keep(domain, document, candidate)
        self._drop_malformed(domain, reading.malformed_records)
        language.verify(domain, source.name)

    def _keep(self, domain: str, document: Document, candidate: Candidate) -> None:
        sha256 = candidate.sha256
        group = sha256_text(document.group) if document.group else sha256
        settings = self._settings
        self._candidates.add(
            {
                "seq": self._next(),
                "number": self._kept,
                "domain": domain,
                "source": document.source,
                "licence": document.licence,
                "language": document.language,
                "split": split_of(group, settings.validation_share, settings.test_share),
                "group": group[:GROUP_DIGITS],
                "sha256": sha256,
                "text": candidate.text,
                "text_key": candidate.key,
                "place": document.place,
                "excerpt": candidate.excerpt,
                "characters": len(candidate.text),
                "cut": int(candidate.cut),
                "repaired": int(candidate.repaired),
                **{kind: candidate.masks.get(kind, 0) for kind in KINDS},
            }
        )
        self._kept += 1
        if settings.near_duplicate_similarity < 1 and candidate.hashes is not None:
            self._signatures.add_hashes(candidate.hashes)

    def _drop(self, domain: str, document: Document, candidate: Candidate) -> None:
        self._dropped.add(
            {
                "seq": self._next(),
                "domain": domain,
                "source": document.source,
                "place": document.place,
                "reason": candidate.reason,
                "detail": candidate.detail,
                "sha256": candidate.sha256,
                "excerpt": candidate.excerpt,
            }
        )

    def _drop_malformed(self, domain: str, records: list[Malformed]) -> None:
        for record in records:
            self._dropped.add(
                {
                    "seq": self._next(),
                    "domain": domain,
                    "source": record.source,
                    "place": record.place,
                    "reason": record.reason,
                    "detail": record.detail,
                    "sha256": "",
                    "excerpt": "",
                }
            )
        # Read on with an empty list: there may be millions.
        records.clear()

    def _next(self) -> int:
        self._read += 1
        return self._read


def _refuse_useless_source(selected: Selection) -> None:
    for (domain, source), reasons in selected.useless().items():
        raise InputError(
            f"domain {domain}, source {source}: none of its documents is usable{_listed(reasons)}: "
            "correct it in configs/domains.yaml or remove it"
        )


def _facts(selected: Selection, domains: dict[str, list[Source]]) -> dict[str, Any]:
    """What the manifest says of every domain; refuses one without documents for a split."""
    usable, dropped = selected.usable(), selected.reasons()
    splits, languages = selected.counts("split"), selected.counts("language")
    licences, sums = selected.counts("licence"), selected.sums()
    sources = {name: dict(_sources(domains[name])) for name in domains}
    for domain, source, documents, characters in selected.sources():
        sources[domain][source] |= {"documents": documents, "characters": characters}
    facts = {}
    for name in domains:
        found = splits.get(name, {})
        reasons = dropped.get(name, {})
        missing = [split for split in SPLITS if not found.get(split)]
        if missing:
            raise InputError(
                f"domain {name} has {usable.get(name, 0)} usable documents from "
                f"{', '.join(source.name for source in domains[name])}, and none for "
                f"{missing[0]}{_listed(reasons)}: add text or sources to {name} in "
                "configs/domains.yaml"
            )
        documents = sum(found.values())
        if usable[name] > documents:
            reasons["not_drawn"] = usable[name] - documents
        facts[name] = {
            "documents": documents,
            "characters": sums[name]["characters"],
            "languages": languages[name],
            "licences": list(licences[name]),
            "sources": sources[name],
            "splits": {split: found[split] for split in SPLITS},
            "cut": sums[name]["cut"],
            "repaired": sums[name]["repaired"],
            "masked": {kind: sums[name][kind] for kind in KINDS},
            "dropped": reasons,
        }
    return facts


def _sources(sources: list[Source]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sources by name, still without documents; those of one name are one entry."""
    for name in dict.fromkeys(source.name for source in sources):
        same = [source for source in sources if source.name == name]
        yield (
            name,
            {
                "documents": 0,
                "characters": 0,
                "licence": " AND ".join(dict.fromkeys(source.licence for source in same)),
                "language": ", ".join(dict.fromkeys(source.language for source in same)),
            },
        )


def _listed(dropped: dict[str, int]) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return f" (dropped: {counts})" if counts else ""
