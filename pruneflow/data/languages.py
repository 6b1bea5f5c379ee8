"""Language detection with py3langid: naive Bayes over bytes, offline, 140 languages."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from pruneflow.data.source_kinds import NO_LANGUAGE
from pruneflow.errors import InputError

log = logging.getLogger(__name__)

SAMPLE_CHARACTERS = 1000
"""Characters used for detection; of a longer text, from four places."""
QUICK_CHARACTERS = 300
"""A smaller sample, which suffices if it confirms the expected language."""
PLACES = 4
MIN_LETTERS = 40
"""Letters in the sample below which no language is detected."""
MIN_CHECKED = 5
"""Documents required before a source's language tag is reported as wrong."""

# Languages so similar, or with so many tags, that confusing them is not an error.
_ALIKE = (
    {"no", "nb", "nn"},
    {"zh", "cmn", "yue", "wuu"},
    {"hr", "bs", "sr", "sh"},
    {"id", "ms"},
    {"ar", "arb", "ary", "arz"},
    {"tl", "fil"},
    {"ku", "ckb", "sdh", "kmr"},
    {"uz", "uzs", "uzn"},
    {"en", "pcm"},
    {"fa", "pes", "prs"},
)


def other_language(text: str, language: str, confidence: float) -> str | None:
    """Return the detected language of a text if it is not the expected one.

    Args:
        text: any text.
        language: the expected BCP-47 tag; only its first part counts.
        confidence: required probability, 0 to 1.

    Returns:
        The detected tag, or None.
    """
    expected = _alike(language)
    found, probability = _identifier().classify(_sample(text, QUICK_CHARACTERS))
    if found in expected and probability >= confidence:
        return None
    ranked = _identifier().rank(_sample(text, SAMPLE_CHARACTERS))
    found = ranked[0][0]
    probability = sum(share for tag, share in ranked if tag in _alike(found))
    other = found != NO_LANGUAGE and found not in expected
    return found if other and probability >= confidence else None


def is_detectable(text: str, language: str) -> bool:
    """Return whether a text is long enough and its language is supported by the detector."""
    sample = _sample(text, SAMPLE_CHARACTERS)
    return sum(map(str.isalpha, sample)) >= MIN_LETTERS and is_supported(language)


def is_supported(language: str) -> bool:
    """Return whether the detector knows a language."""
    return bool(_alike(language) & _supported())


@dataclass
class SourceLanguage:
    """Detected languages of a source's documents.

    Attributes:
        language: the source's own tag.
        checked: number of documents checked.
        others: number of these in each other language.
    """

    language: str
    checked: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def verify(self, domain: str, source: str) -> None:
        """Check that the tag is right for at least half of the checked documents.

        Raises:
            InputError: names domain, source and the most frequent language.
        """
        if self.language != NO_LANGUAGE and not is_supported(self.language):
            log.warning(
                "domain %s, source %s: language %s cannot be detected, so it is not checked (use "
                "zxx for source code)",
                domain,
                source,
                self.language,
            )
        if self.checked < MIN_CHECKED or not self.others:
            return
        found, count = min(self.others.items(), key=lambda item: (-item[1], item[0]))
        if 2 * count > self.checked:
            raise InputError(
                f"domain {domain}, source {source} has language {self.language}, but {count} of "
                f"{self.checked} documents are {found}: correct `language` in configs/domains.yaml"
            )


def _sample(text: str, characters: int) -> str:
    """The text, or so many of its characters from the beginning, the end and in between."""
    if len(text) <= characters:
        return text
    part = characters // PLACES
    step = (len(text) - part) / (PLACES - 1)
    return " ".join(
        text[round(index * step) : round(index * step) + part] for index in range(PLACES)
    )


def _alike(language: str) -> set[str]:
    tag = language.split("-")[0].lower()
    return next((group for group in _ALIKE if tag in group), {tag})


@lru_cache(maxsize=1)
def _supported() -> frozenset[str]:
    return frozenset(_identifier().labels) - {NO_LANGUAGE}


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
