"""The table of documents: read from sources, cleaned, deduplicated and decontaminated."""

import platform
from collections import Counter
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile
from typing import Any

import pandas

from pruneflow.artifacts import staged_directory, write_manifest
from pruneflow.data.cleaning import duplicate_key, sha256_text
from pruneflow.data.contamination import QuestionNgrams, question_ngrams
from pruneflow.data.document_filter import Candidate, filter_record
from pruneflow.data.document_table import (
    CANDIDATES,
    COUNTED,
    REJECTED,
    SPLITS,
    Selection,
    row_writer,
    selection,
)
from pruneflow.data.languages import check_source_language
from pruneflow.data.near_duplicates import Signatures
from pruneflow.data.personal_data import KINDS
from pruneflow.data.record_template import TextRecord, Unreadable
from pruneflow.data.source_kinds import Source
from pruneflow.data.sources import known_domains, read_source
from pruneflow.errors import InputError
from pruneflow.locked_files import Reading, load_lock
from pruneflow.progress import track
from pruneflow.settings.calibration import DocumentSettings

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
        with TemporaryFile(dir=work) as file:
            signatures = Signatures(file)
            _read(domains, settings, reading, ngrams, signatures, work)
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


def split_of(sha256: str, validation_share: float, test_share: float) -> str:
    """Return the split of a document, from the hash of its text or group, without a seed."""
    position = int(sha256[-12:], 16) / 16**12
    if position < test_share:
        return "test"
    return "validation" if position < test_share + validation_share else "calibration"


def _read(
    domains: dict[str, list[Source]],
    settings: DocumentSettings,
    reading: Reading,
    ngrams: QuestionNgrams,
    signatures: Signatures,
    work: Path,
) -> None:
    """Write the records of all sources as candidates or as dropped, numbered in reading order.

    Raises:
        InputError: a source cannot be read, or most of it is in another language.
    """
    sources = [(name, source) for name, group in domains.items() for source in group]
    read = kept = 0
    with (
        row_writer(work / "candidates.parquet", CANDIDATES) as keep,
        row_writer(work / "dropped.parquet", REJECTED) as drop,
    ):
        for domain, source in track(sources, "documents"):
            languages: Counter[str] = Counter()
            for record in read_source(domain, source, reading):
                read += 1
                row: dict[str, Any] = {
                    "seq": read,
                    "domain": domain,
                    "source": source.name,
                    "place": record.place,
                }
                if isinstance(record, Unreadable):
                    unreadable = {"reason": record.reason, "detail": record.problem}
                    drop({**row, **unreadable, "sha256": "", "excerpt": ""})
                    continue
                candidate = filter_record(record, source.language, settings, ngrams)
                if candidate.language:
                    languages[candidate.language] += 1
                row |= {"sha256": candidate.sha256, "excerpt": candidate.excerpt}
                if candidate.reason:
                    drop({**row, "reason": candidate.reason, "detail": candidate.detail})
                    continue
                columns = _columns(candidate, record, source, settings)
                keep({**row, "number": kept, **columns})
                kept += 1
                if settings.near_duplicate_similarity < 1:
                    signatures.add(candidate.words.hashes)
            check_source_language(domain, source.name, source.language, languages)


def _columns(
    candidate: Candidate, record: TextRecord, source: Source, settings: DocumentSettings
) -> dict[str, Any]:
    """The columns that only a candidate has."""
    group = sha256_text(record.group) if record.group else candidate.sha256
    return {
        "licence": source.licence,
        "language": source.language,
        "split": split_of(group, settings.validation_share, settings.test_share),
        "group": group[:GROUP_DIGITS],
        "text": candidate.text,
        "text_key": duplicate_key(candidate.text),
        "characters": len(candidate.text),
        "cut": int(candidate.cut),
        "repaired": int(candidate.repaired),
        **{kind: candidate.masks.get(kind, 0) for kind in KINDS},
    }


def _select(selected: Selection, settings: DocumentSettings, signatures: Signatures) -> None:
    """Drop duplicates and near-duplicates, and sample; raises if a source has no documents."""
    selected.drop_equal()
    if settings.near_duplicate_similarity < 1:
        selected.drop_near_duplicates(signatures, settings.near_duplicate_similarity)
    for domain, source, reasons in selected.unusable_sources():
        raise InputError(
            f"domain {domain}, source {source}: none of its documents is usable{_listed(reasons)}: "
            "correct it in configs/domains.yaml or remove it"
        )
    selected.sample(settings)


def _facts(selected: Selection, domains: dict[str, list[Source]]) -> dict[str, Any]:
    """The manifest's entry of every domain; raises if a domain has no documents for a split."""
    drawn, dropped = selected.drawn(), selected.reasons()
    facts = {}
    for name, sources in domains.items():
        rows, reasons = drawn[drawn["domain"] == name], dropped.get(name, {})
        totals = rows[["documents", *COUNTED]].sum().to_dict()
        splits = rows.groupby("split")["documents"].sum().to_dict()
        missing = [split for split in SPLITS if split not in splits]
        if missing:
            usable = totals["documents"] + reasons.pop("not_drawn", 0)
            raise InputError(
                f"domain {name} has {usable} usable documents from "
                f"{', '.join(source.name for source in sources)}, and none for "
                f"{missing[0]}{_listed(reasons)}: add text or sources to {name} in "
                "configs/domains.yaml"
            )
        facts[name] = {
            "documents": totals["documents"],
            "characters": totals["characters"],
            "languages": rows.groupby("language")["documents"].sum().to_dict(),
            "licences": sorted(rows["licence"].unique()),
            "sources": _source_facts(sources, rows),
            "splits": splits,
            "cut": totals["cut"],
            "repaired": totals["repaired"],
            "masked": {kind: totals[kind] for kind in KINDS},
            "dropped": reasons,
        }
    return facts


def _source_facts(sources: list[Source], drawn: pandas.DataFrame) -> dict[str, dict[str, Any]]:
    """Facts by name of the source; sources with the same name share an entry."""
    columns = drawn.groupby("source")[["documents", "characters"]]
    sums: dict[Any, Any] = columns.sum().to_dict("index")
    facts: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(source.name for source in sources):
        same = [source for source in sources if source.name == name]
        facts[name] = {
            **sums.get(name, {"documents": 0, "characters": 0}),
            "licence": " AND ".join(dict.fromkeys(source.licence for source in same)),
            "language": ", ".join(dict.fromkeys(source.language for source in same)),
        }
    return facts


def _listed(dropped: dict[str, int]) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return f" (dropped: {counts})" if counts else ""
