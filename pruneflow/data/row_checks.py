"""What a table of expectations cannot say: checks that need two rows, or another file.

The table is read once, some rows at a time; of a document that has passed, hashes alone are kept.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy
import pyarrow.parquet

from pruneflow.data.contamination import Sequences, question_sequences, shared_run
from pruneflow.data.documents import SPLITS, duplicate_key
from pruneflow.data.findings import Finding
from pruneflow.data.languages import can_be_told, other_language
from pruneflow.data.near_duplicates import Signatures
from pruneflow.data.personal_data import mask
from pruneflow.data.word_hashes import word_hashes, words
from pruneflow.errors import InputError
from pruneflow.settings.calibration import DocumentSettings

BATCH_ROWS = 512
_COLUMNS = ["language", "split", "group", "sha256", "text"]


class Row(NamedTuple):
    """What a check sees of a document; rows of the table are numbered from 0."""

    number: int
    language: str
    split: str
    group: str
    sha256: str
    text: str
    words: list[str]
    hashes: numpy.ndarray


Check = Callable[[Row], str | None]
"""Takes the rows in order; returns what is wrong with one ("" when the name says it all)."""


def run_checks(table: Path, settings: DocumentSettings, questions_dir: Path) -> list[Finding]:
    """Run every check over a table that has its columns and no null.

    Raises:
        InputError: a domain lacks a split (no row could be named for that).
    """
    _refuse_missing_split(table, settings.domains)
    checks: dict[str, Check] = {
        "sha256_is_of_the_text": _hash,
        "no_text_in_two_rows": _equal(),
        "no_group_in_two_splits": _grouped(),
        "no_overlap_with_evaluation_questions": _overlap(question_sequences(questions_dir)),
    }
    if settings.language_confidence < 1:
        checks["text_is_in_its_language"] = _in_language(settings.language_confidence)
    if settings.personal_data != "keep":
        checks["no_personal_data"] = _personal_data
    findings = {name: Finding(name, "documents") for name in checks}
    alike = Finding("no_near_duplicates", "documents")
    similarity = settings.near_duplicate_similarity
    with Signatures(table.parent) as signatures:
        for row in _rows(table):
            for name, check in checks.items():
                fault = check(row)
                if fault is not None:
                    findings[name].add([(row.number, fault)])
            if similarity < 1:
                signatures.add_hashes(row.hashes)
        if similarity < 1:
            pairs = signatures.near_duplicates(similarity).tolist()
            alike.add((later, f"like row {earlier} of the table") for later, earlier in pairs)
    found = [*findings.values(), alike]
    for finding in found:
        finding.observed = {"rows_at_fault": finding.rows}
    return found


def _rows(table: Path) -> Iterator[Row]:

    number = 0
    with pyarrow.parquet.ParquetFile(table) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=_COLUMNS):
            for values in batch.to_pylist():
                found = words(values["text"])
                yield Row(number, **values, words=found, hashes=word_hashes(found))
                number += 1


def _refuse_missing_split(table: Path, domains: list[str]) -> None:

    columns = pyarrow.parquet.read_table(table, columns=["domain", "split"])
    pairs = columns.group_by(["domain", "split"]).aggregate([]).to_pylist()
    found = {(pair["domain"], pair["split"]) for pair in pairs}
    for domain in domains:
        missing = [split for split in SPLITS if (domain, split) not in found]
        if missing:
            raise InputError(
                f"domain_has_every_split fails: domain {domain} has no document for {missing[0]}: "
                f"add text or sources to {domain} in configs/domains.yaml"
            )


def _hash(row: Row) -> str | None:
    found = hashlib.sha256(row.text.encode()).hexdigest()
    return None if found == row.sha256 else f"whose sha256 is {found[:12]}"


def _equal() -> Check:
    """A check for the text of an earlier row: case and spaces do not count."""
    seen: set[bytes] = set()

    def check(row: Row) -> str | None:
        key = bytes.fromhex(duplicate_key(row.text))[:16]
        if key in seen:
            return ""
        seen.add(key)
        return None

    return check


def _grouped() -> Check:
    """A check for a group that an earlier row has in another split."""
    splits: dict[int, int] = {}

    def check(row: Row) -> str | None:
        split = SPLITS.index(row.split)
        first = splits.setdefault(int(row.group, 16), split)
        if first == split:
            return None
        return f"split {row.split}, and its group {row.group} is in {SPLITS[first]} too"

    return check


def _in_language(confidence: float) -> Check:
    def check(row: Row) -> str | None:
        if not can_be_told(row.text, row.language):
            return None
        other = other_language(row.text, row.language, confidence)
        return other and f"language {row.language}, and its text is {other}"

    return check


def _personal_data(row: Row) -> str | None:
    _, counts = mask(row.text, row.language)
    found = [kind for kind, count in counts.items() if count]
    return f"in which there is: {', '.join(found)}" if found else None


def _overlap(sequences: Sequences) -> Check:
    def check(row: Row) -> str | None:
        shared = shared_run(row.words, row.hashes, sequences)
        return shared and f"which shares with question {shared.question}: {shared.words}"

    return check
