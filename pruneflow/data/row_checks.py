"""Validation that Great Expectations cannot express: it compares rows, or reads another file.

The table is read once, in batches; only hashes are kept of the documents already checked.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

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


def run_checks(table: Path, settings: DocumentSettings, questions_dir: Path) -> list[Finding]:
    """Run all checks on a table whose columns are valid and without nulls.

    Raises:
        InputError: a domain has no documents for a split.
    """
    _check_splits(table, settings.domains)
    names = [
        "sha256_is_of_the_text",
        "no_text_in_two_rows",
        "no_group_in_two_splits",
        "no_overlap_with_evaluation_questions",
    ]
    if settings.language_confidence < 1:
        names.append("text_is_in_its_language")
    if settings.personal_data != "keep":
        names.append("no_personal_data")
    findings = {name: Finding(name, "documents") for name in [*names, "no_near_duplicates"]}
    checks = _RowChecks(settings, question_ngrams(questions_dir))
    similarity = settings.near_duplicate_similarity
    with TemporaryFile(dir=table.parent) as file:
        signatures = Signatures(file)
        for number, row in enumerate(_rows(table)):
            words = hash_words(row["text"])
            for name, detail in checks.failed(row, words):
                findings[name].add([(number, detail)])
            if similarity < 1:
                signatures.add(words.hashes)
        if similarity < 1:
            pairs = signatures.near_duplicates(similarity).tolist()
            findings["no_near_duplicates"].add(
                (later, f"similar to row {earlier} of the table") for later, earlier in pairs
            )
    for finding in findings.values():
        finding.observed = {"rows_at_fault": finding.rows}
    return list(findings.values())


def _rows(table: Path) -> Iterator[dict[str, str]]:
    with pyarrow.parquet.ParquetFile(table) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=_COLUMNS):
            yield from batch.to_pylist()


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


class _RowChecks:
    """Checks of one row after another, in the table's order."""

    def __init__(self, settings: DocumentSettings, ngrams: QuestionNgrams) -> None:
        self._settings, self._ngrams = settings, ngrams
        self._keys: set[bytes] = set()
        self._splits: dict[int, int] = {}  # of the groups, by index in SPLITS

    def failed(self, row: dict[str, str], words: HashedWords) -> Iterator[tuple[str, str]]:
        """Yield the failed checks, each with a detail that may be empty."""
        text, language, settings = row["text"], row["language"], self._settings
        sha256 = sha256_text(text)
        if sha256 != row["sha256"]:
            yield "sha256_is_of_the_text", f"whose sha256 is {sha256[:12]}"
        key = bytes.fromhex(duplicate_key(text))[:16]
        if key in self._keys:
            yield "no_text_in_two_rows", ""
        self._keys.add(key)
        split = SPLITS.index(row["split"])
        first = self._splits.setdefault(int(row["group"], 16), split)
        if first != split:
            detail = f"split {row['split']}, and its group {row['group']} is also in"
            yield "no_group_in_two_splits", f"{detail} {SPLITS[first]}"
        shared = find_overlap(words, self._ngrams)
        if shared:
            detail = f"shares with question {shared.question}: {shared.words}"
            yield "no_overlap_with_evaluation_questions", detail
        if settings.language_confidence < 1:
            found = detected_language(text, language, settings.language_confidence)
            if found not in ("", language):
                yield "text_is_in_its_language", f"language {language}, and its text is {found}"
        if settings.personal_data != "keep":
            _, counts = mask_personal_data(text, language)
            kinds = [kind for kind, count in counts.items() if count]
            if kinds:
                yield "no_personal_data", f"contains {', '.join(kinds)}"
