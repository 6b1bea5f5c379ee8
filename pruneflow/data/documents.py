"""The table of documents: read from sources, cleaned, deduplicated and decontaminated."""

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
from pruneflow.data.contamination import QuestionNgrams, question_ngrams
from pruneflow.data.document_filter import Candidate, filter_record
from pruneflow.data.document_table import (
    CANDIDATES,
    COLUMNS,
    DROPPED_COLUMNS,
    REJECTED,
    SPLITS,
    RowWriter,
    Selection,
    selection,
)
from pruneflow.data.languages import SourceLanguage
from pruneflow.data.near_duplicates import Signatures
from pruneflow.data.personal_data import KINDS
from pruneflow.data.record_template import TextRecord, Unreadable
from pruneflow.data.sources import Source, known_domains, read_source
from pruneflow.errors import InputError
from pruneflow.locked_files import Reading, load_lock
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
    """Write `documents.parquet`, `dropped.parquet` and a manifest.

    Of duplicates and near-duplicates the first is kept, in the order of `settings.domains`. A
    document that shares a 13-gram of words with an evaluation question is dropped. Memory use
    hardly depends on the amount of text.

    Args:
        settings: domains, limits and shares.
        domains_file: the sources of every domain.
        lock_file: the pinned package files and hub datasets.
        questions_dir: folder of the evaluation questions.
        out: the folder to write.
        root: the workspace root, which `data/text` is relative to.

    Returns:
        The manifest.

    Raises:
        InputError: a domain is unknown, or one of its sources is missing, empty, malformed, too
            small or in another language; names domain, source and the fix.
    """
    domains = known_domains(settings.domains, domains_file)
    reading = Reading(
        root, load_lock(lock_file), settings.malformed, settings.max_record_mb * 2**20
    )
    ngrams = question_ngrams(questions_dir)
    with staged_directory(out) as folder:
        work = folder / "work"
        work.mkdir()
        with Signatures(work) as signatures:
            with _Reader(work, settings, ngrams, signatures) as reader:
                for name in track(settings.domains, "documents"):
                    for source in domains[name]:
                        reader.read(name, source, reading)
            with selection(work) as selected:
                _select(selected, settings, signatures)
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
            questions={"asked": len(ngrams.questions), "unrecognisable": ngrams.unrecognisable},
        )


def read_documents(directory: Path) -> pandas.DataFrame:
    """Read the table of documents after verifying its manifest; all columns are strings.

    Raises:
        DamagedArtifactError: the table is missing or does not match the manifest.
    """
    verify_manifest(directory)
    return pyarrow.parquet.read_table(directory / TABLE).to_pandas()


def split_of(sha256: str, validation_share: float, test_share: float) -> str:
    """Return the split of a document, from the hash of its text or group, without a seed."""
    position = int(sha256[-12:], 16) / 16**12
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "calibration"


class _Reader:
    """Writes the records of sources as candidates or as dropped, numbered in reading order."""

    def __init__(
        self, work: Path, settings: DocumentSettings, ngrams: QuestionNgrams, signatures: Signatures
    ) -> None:
        self._settings, self._ngrams, self._signatures = settings, ngrams, signatures
        self._stack = ExitStack()
        self._candidates, self._dropped = (
            self._stack.enter_context(RowWriter(work / f"{name}.parquet", columns))
            for name, columns in (("candidates", CANDIDATES), ("dropped", REJECTED))
        )
        self._read = self._kept = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def read(self, domain: str, source: Source, reading: Reading) -> None:
        """Read one source.

        Raises:
            InputError: it cannot be read, or most of it is in another language.
        """
        language = SourceLanguage(source.language)
        for record in read_source(domain, source, reading):
            self._read += 1
            row = {
                "seq": self._read,
                "domain": domain,
                "source": source.name,
                "place": record.place,
            }
            if isinstance(record, Unreadable):
                unreadable = {"reason": record.reason, "detail": record.problem}
                self._dropped.add({**row, **unreadable, "sha256": "", "excerpt": ""})
                continue
            candidate = filter_record(record, source.language, self._settings, self._ngrams)
            language.checked += candidate.language_checked
            if candidate.other_language:
                language.others[candidate.other_language] += 1
            row |= {"sha256": candidate.sha256, "excerpt": candidate.excerpt}
            if candidate.reason:
                reason = {"reason": candidate.reason, "detail": candidate.detail}
                self._dropped.add({**row, **reason})
            else:
                row |= {"licence": source.licence, "language": source.language}
                self._keep(row, record, candidate)
        language.verify(domain, source.name)

    def _keep(self, row: dict[str, Any], record: TextRecord, candidate: Candidate) -> None:
        group = sha256_text(record.group) if record.group else candidate.sha256
        settings = self._settings
        self._candidates.add(
            {
                **row,
                "number": self._kept,
                "split": split_of(group, settings.validation_share, settings.test_share),
                "group": group[:GROUP_DIGITS],
                "text": candidate.text,
                "text_key": candidate.key,
                "characters": len(candidate.text),
                "cut": int(candidate.cut),
                "repaired": int(candidate.repaired),
                **{kind: candidate.masks.get(kind, 0) for kind in KINDS},
            }
        )
        self._kept += 1
        if settings.near_duplicate_similarity < 1 and candidate.hashes is not None:
            self._signatures.add_hashes(candidate.hashes)


def _select(selected: Selection, settings: DocumentSettings, signatures: Signatures) -> None:
    """Drop duplicates and near-duplicates, and sample; raises if a source has no documents."""
    selected.drop_equal()
    if settings.near_duplicate_similarity < 1:
        selected.drop_near_duplicates(signatures, settings.near_duplicate_similarity)
    for (domain, source), reasons in selected.unusable_sources().items():
        raise InputError(
            f"domain {domain}, source {source}: none of its documents is usable{_listed(reasons)}: "
            "correct it in configs/domains.yaml or remove it"
        )
    selected.sample(settings)


def _facts(selected: Selection, domains: dict[str, list[Source]]) -> dict[str, Any]:
    """The manifest's entry of every domain; raises if a domain has no documents for a split."""
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
    """Sources by name, with zero documents; sources with the same name share an entry."""
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
