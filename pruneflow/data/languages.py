"""Language detection with py3langid: naive Bayes over bytes, offline, 140 languages."""

import logging
from collections import Counter
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


def detected_language(text: str, language: str, confidence: float) -> str:
    """Return the language of a text: the expected one, unless another one is detected.

    Args:
        text: any text.
        language: the expected BCP-47 tag; only its first part counts.
        confidence: probability from which a detected language counts, 0 to 1.

    Returns:
        `language` or another tag; "" if the text is too short, or the detector does not know
        `language`.
    """
    sample = _sample(text, SAMPLE_CHARACTERS)
    if sum(map(str.isalpha, sample)) < MIN_LETTERS or not _is_supported(language):
        return ""
    expected = _alike(language)
    found, probability = _identifier().classify(_sample(text, QUICK_CHARACTERS))
    if found in expected and probability >= confidence:
        return language
    ranked = _identifier().rank(sample)
    found = ranked[0][0]
    probability = sum(share for tag, share in ranked if tag in _alike(found))
    other = found != NO_LANGUAGE and found not in expected
    return found if other and probability >= confidence else language


def check_source_language(domain: str, source: str, language: str, found: Counter[str]) -> None:
    """Check that the language tag of a source is right for at least half of its documents.

    Args:
        domain: name of the domain.
        source: name of the source.
        language: the source's own tag.
        found: number of documents in each detected language.

    Raises:
        InputError: names domain, source and the most frequent other language.
    """
    if language != NO_LANGUAGE and not _is_supported(language):
        log.warning(
            "domain %s, source %s: language %s cannot be detected, so it is not checked (use zxx "
            "for source code)",
            domain,
            source,
            language,
        )
    checked = found.total()
    others = {tag: count for tag, count in found.items() if tag != language}
    if checked < MIN_CHECKED or not others:
        return
    other, count = min(others.items(), key=lambda item: (-item[1], item[0]))
    if 2 * count > checked:
        raise InputError(
            f"domain {domain}, source {source} has language {language}, but {count} of {checked} "
            f"documents are {other}: correct `language` in configs/domains.yaml"
        )


def _is_supported(language: str) -> bool:
    known = _identifier().labels
    return any(tag in known and tag != NO_LANGUAGE for tag in _alike(language))


def _sample(text: str, characters: int) -> str:
    """Return up to `characters` of a text, from its beginning, its end and places in between."""
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
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
