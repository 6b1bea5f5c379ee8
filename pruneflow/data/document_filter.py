"""What becomes of one document by itself: cleaned, and kept or dropped for a reason."""

from dataclasses import dataclass, field

import numpy

from pruneflow.data import personal_data
from pruneflow.data.cleaning import (
    clean,
    clean_code,
    compressed_share,
    cut,
    duplicate_key,
    is_binary,
    repair,
    sha256_text,
)
from pruneflow.data.contamination import Sequences, shared_run
from pruneflow.data.languages import can_be_told, other_language
from pruneflow.data.source_kinds import NO_LANGUAGE
from pruneflow.data.sources import Document
from pruneflow.data.word_hashes import word_hashes, words
from pruneflow.settings.calibration import DocumentSettings

EXCERPT = 80


@dataclass
class Candidate:
    """A document after cleaning.

    Attributes:
        text: what the table would hold: repaired, cut, personal data masked.
        reason: why it is dropped; "" while it may stay.
        detail: what shows the reason.
        repaired: whether wrongly decoded characters were put right.
        cut: whether the document was longer.
        masks: masks in the text by kind (`personal_data.KINDS`).
        told: whether its language could be told.
        other: the other language that it surely is in, or None.
        hashes: of its words, uint64 of shape [words]; None when dropped.
    """

    text: str
    reason: str = ""
    detail: str = ""
    repaired: bool = False
    cut: bool = False
    masks: dict[str, int] = field(default_factory=dict)
    told: bool = False
    other: str | None = None
    hashes: numpy.ndarray | None = None

    @property
    def sha256(self) -> str:
        """Of the text; "" where there is none."""
        return sha256_text(self.text) if self.text else ""

    @property
    def key(self) -> str:
        """What it shares with documents that are equal but for case and white space."""
        return duplicate_key(self.text)

    @property
    def excerpt(self) -> str:
        """The beginning of the text, on one line."""
        return " ".join(self.text[: 4 * EXCERPT].split())[:EXCERPT]


def examine(document: Document, settings: DocumentSettings, sequences: Sequences) -> Candidate:
    """Clean a document, and judge it by all that can be said without another one.

    Args:
        document: as it was read.
        settings: limits, and what to do with personal data.
        sequences: of the evaluation questions.
    """
    candidate = _cleaned(document, settings)
    if not candidate.reason:
        candidate.reason, candidate.detail = _judged(candidate, document.language, settings)
    if not candidate.reason:
        found = words(candidate.text)
        candidate.hashes = word_hashes(found)
        overlap = shared_run(found, candidate.hashes, sequences)
        if overlap:
            candidate.reason = "evaluation_overlap"
            candidate.detail = f"{overlap.question}: {overlap.words}"
    return candidate


def _cleaned(document: Document, settings: DocumentSettings) -> Candidate:
    code = document.language == NO_LANGUAGE
    repaired = document.text if code else repair(document.text)
    whole = clean_code(repaired) if code else clean(repaired)
    text = cut(whole, settings.max_characters)
    candidate = Candidate(text, repaired=repaired != document.text, cut=len(text) < len(whole))
    if settings.personal_data != "keep":
        masked, candidate.masks = personal_data.mask(text, document.language)
        # A mask may be longer than what it hides, and a cut may lay bare what was part of more.
        while len(masked) > settings.max_characters:
            masked, _ = personal_data.mask(cut(masked, settings.max_characters), document.language)
        candidate.text = masked
    if is_binary(repaired):
        candidate.reason, candidate.detail = "binary", document.place
    elif not candidate.text:
        candidate.reason = "empty"
    return candidate


def _judged(candidate: Candidate, language: str, settings: DocumentSettings) -> tuple[str, str]:
    """Return reason and detail, or two empty strings."""
    text = candidate.text
    if len(text) < settings.min_characters:
        return "too_short", f"{len(text)} characters"
    if settings.min_compressed_share:
        share = compressed_share(text)
        if share < settings.min_compressed_share:
            return "repetitive", f"compresses to {share:.3f}"
    if settings.language_confidence < 1 and can_be_told(text, language):
        candidate.told = True
        candidate.other = other_language(text, language, settings.language_confidence)
        if candidate.other:
            return "wrong_language", candidate.other
    kinds = [kind for kind, count in candidate.masks.items() if count]
    if settings.personal_data == "drop" and kinds:
        return "personal_data", ", ".join(kinds)
    return "", ""
