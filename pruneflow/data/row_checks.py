"""Validation that Great Expectations cannot express: it compares rows, or reads another file.

The table is read once, in batches; only hashes are kept of the documents already checked.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet

from pruneflow.data.cleaning import duplicate_key, sha256_text
from pruneflow.data.contamination import QuestionNgrams, find_overlap, question_ngrams
from pruneflow.data.document_table import SPLITS
from pruneflow.data.findings import Finding
from pruneflow.data.languages import detected_language
from pruneflow.data.near_duplicates import Signatures
from pruneflow.data.personal_data import mask_personal_data
from pruneflow.data.word_hashes import HashedWords, hash_words
from pruneflow.errors import InputError
from pruneflow.settings.calibration import DocumentSettings

BATCH_ROWS = 512
_COLUMNS = ["language", "split", "group", "sha256", "text"]


class TableRow(NamedTuple):
    """A row of the table, numbered from 0, with the words of its text."""

    number: int
    language: str
    split: str
    group: str
    sha256: str
    text: str
    words: HashedWords


Check = Callable[[TableRow], str | None]
"""Called with the rows in order; returns the detail of a failure (may be ""), else None."""


def run_checks(table: Path, settings: DocumentSettings, questions_dir: Path) -> list[Finding]:
    """Run all checks on a table whose columns are valid and without nulls.

    Raises:
        InputError: a domain has no documents for a split.
    """
    _check_splits(table, settings.domains)
    checks: dict[str, Check] = {
        "sha256_is_of_the_text": _hash,
        "no_text_in_two_rows": _duplicate(),
        "no_group_in_two_splits": _split_group(),
        "no_overlap_with_evaluation_questions": _overlap(question_ngrams(questions_dir)),
    }
    if settings.language_confidence < 1:
        checks["text_is_in_its_language"] = _wrong_language(settings.language_confidence)
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
                signatures.add(row.words.hashes)
        if similarity < 1:
            pairs = signatures.near_duplicates(similarity).tolist()
            alike.add((later, f"similar to row {earlier} of the table") for later, earlier in pairs)
    found = [*findings.values(), alike]
    for finding in found:
        finding.observed = {"rows_at_fault": finding.rows}
    return found


def _rows(table: Path) -> Iterator[TableRow]:
    number = 0
    with pyarrow.parquet.ParquetFile(table) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=_COLUMNS):
            for values in batch.to_pylist():
                yield TableRow(number, **values, words=hash_words(values["text"]))
                number += 1


def _check_splits(table: Path, domains: list[str]) -> None:
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


def _hash(row: TableRow) -> str | None:
    found = sha256_text(row.text)
    return None if found == row.sha256 else f"whose sha256 is {found[:12]}"


def _duplicate() -> Check:
    """A check for duplicates of earlier rows, ignoring letter case and white space."""
    seen: set[bytes] = set()

    def check(row: TableRow) -> str | None:
        key = bytes.fromhex(duplicate_key(row.text))[:16]
        if key in seen:
            return ""
        seen.add(key)
        return None

    return check


def _split_group() -> Check:
    """A check for groups that are in more than one split."""
    splits: dict[int, int] = {}

    def check(row: TableRow) -> str | None:
        split = SPLITS.index(row.split)
        first = splits.setdefault(int(row.group, 16), split)
        if first == split:
            return None
        return f"split {row.split}, and its group {row.group} is also in {SPLITS[first]}"

    return check


def _wrong_language(confidence: float) -> Check:
    def check(row: TableRow) -> str | None:
        found = detected_language(row.text, row.language, confidence)
        wrong = found not in ("", row.language)
        return f"language {row.language}, and its text is {found}" if wrong else None

    return check


def _personal_data(row: TableRow) -> str | None:
    _, counts = mask_personal_data(row.text, row.language)
    found = [kind for kind, count in counts.items() if count]
    return f"contains {', '.join(found)}" if found else None


def _overlap(ngrams: QuestionNgrams) -> Check:
    def check(row: TableRow) -> str | None:
        shared = find_overlap(row.words, ngrams)
        return shared and f"shares with question {shared.question}: {shared.words}"

    return check
