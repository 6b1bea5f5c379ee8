"""Cleaning and filtering of a single document: kept, or dropped with a reason."""

from dataclasses import dataclass, field
from functools import cached_property

from pruneflow.data.cleaning import (
    clean,
    clean_code,
    compressed_share,
    cut,
    fix_mojibake,
    is_binary,
    sha256_text,
)
from pruneflow.data.contamination import QuestionNgrams, find_overlap
from pruneflow.data.languages import detected_language
from pruneflow.data.personal_data import mask_personal_data
from pruneflow.data.record_template import TextRecord
from pruneflow.data.source_kinds import NO_LANGUAGE
from pruneflow.data.word_hashes import HashedWords, hash_words
from pruneflow.settings.calibration import DocumentSettings

EXCERPT = 80


@dataclass
class Candidate:
    """A cleaned document that may enter the table.

    Attributes:
        text: repaired, truncated, personal data masked.
        reason: why it is dropped; "" if it is not.
        detail: evidence for the reason.
        repaired: whether mojibake was fixed.
        cut: whether the document was truncated.
        masks: number of masks in the text by kind (`personal_data.KINDS`).
        language: the source's language, or another one that was detected; "" if not checked.
    """

    text: str
    reason: str = ""
    detail: str = ""
    repaired: bool = False
    cut: bool = False
    masks: dict[str, int] = field(default_factory=dict)
    language: str = ""

    @cached_property
    def words(self) -> HashedWords:
        """The words of the text, and their hashes."""
        return hash_words(self.text)

    @property
    def sha256(self) -> str:
        """Sha256 of the text; "" for an empty one."""
        return sha256_text(self.text) if self.text else ""

    @property
    def excerpt(self) -> str:
        """The beginning of the text, on one line."""
        return " ".join(self.text[: 4 * EXCERPT].split())[:EXCERPT]


def filter_record(
    record: TextRecord, language: str, settings: DocumentSettings, ngrams: QuestionNgrams
) -> Candidate:
    """Clean a record, and apply all filters that need no other document.

    Args:
        record: as read from its source.
        language: BCP-47 tag of the source.
        settings: limits, and the treatment of personal data.
        ngrams: of the evaluation questions.
    """
    candidate = _clean(record, language, settings)
    if not candidate.reason:
        candidate.reason, candidate.detail = _filter(candidate, language, settings)
    if not candidate.reason:
        overlap = find_overlap(candidate.words, ngrams)
        if overlap:
            candidate.reason = "evaluation_overlap"
            candidate.detail = f"{overlap.question}: {overlap.words}"
    return candidate


def _clean(record: TextRecord, language: str, settings: DocumentSettings) -> Candidate:
    code = language == NO_LANGUAGE
    repaired = record.text if code else fix_mojibake(record.text)
    full = clean_code(repaired) if code else clean(repaired)
    text = cut(full, settings.max_characters)
    candidate = Candidate(text, repaired=repaired != record.text, cut=len(text) < len(full))
    if settings.personal_data != "keep":
        masked, candidate.masks = mask_personal_data(text, language)
        # A mask may be longer than what it replaces, and truncation may create a new match.
        while len(masked) > settings.max_characters:
            masked, _ = mask_personal_data(cut(masked, settings.max_characters), language)
        candidate.text = masked
    if is_binary(repaired):
        candidate.reason, candidate.detail = "binary", record.place
    elif not candidate.text:
        candidate.reason = "empty"
    return candidate


def _filter(candidate: Candidate, language: str, settings: DocumentSettings) -> tuple[str, str]:
    """Return the reason to drop a candidate and the detail, or two empty strings."""
    text = candidate.text
    if len(text) < settings.min_characters:
        return "too_short", f"{len(text)} characters"
    if settings.min_compressed_share:
        share = compressed_share(text)
        if share < settings.min_compressed_share:
            return "repetitive", f"compresses to {share:.3f}"
    if settings.language_confidence < 1:
        candidate.language = detected_language(text, language, settings.language_confidence)
        if candidate.language not in ("", language):
            return "wrong_language", candidate.language
    kinds = [kind for kind, count in candidate.masks.items() if count]
    if settings.personal_data == "drop" and kinds:
        return "personal_data", ", ".join(kinds)
    return "", ""
