"""Which language a text is in, by py3langid: naive Bayes over bytes, offline, 140 languages."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from pruneflow.data.source_kinds import NO_LANGUAGE
from pruneflow.errors import InputError

log = logging.getLogger(__name__)

LOOKED_AT = 1000
"""Characters that a text's language is told from: of a longer one, from four places."""
ENOUGH = 300
"""Characters that are enough where they are surely in the right language."""
PLACES = 4
MIN_LETTERS = 40
"""Letters among them below which a language cannot be told."""
MIN_CHECKED = 5
"""Documents from which on a source's own tag is doubted."""

# Written so alike, or by so many names, that one is not taken for a wrong other.
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
    """Return the language of a text where it is surely another one.

    Args:
        text: any text.
        language: the BCP-47 tag it should have; only its first part counts.
        confidence: how sure is surely, 0 to 1.

    Returns:
        The other language's tag, or None.
    """
    right = _alike(language)
    found, sure = _identifier().classify(_sample(text, ENOUGH))
    if found in right and sure >= confidence:
        return None
    ranked = _identifier().rank(_sample(text, LOOKED_AT))
    found = ranked[0][0]
    sure = sum(share for tag, share in ranked if tag in _alike(found))
    other = found != NO_LANGUAGE and found not in right
    return found if other and sure >= confidence else None


def can_be_told(text: str, language: str) -> bool:
    """Return whether a text is long enough, and its language one that is known."""
    sample = _sample(text, LOOKED_AT)
    return sum(map(str.isalpha, sample)) >= MIN_LETTERS and is_known(language)


def is_known(language: str) -> bool:
    """Return whether a language is one of those that can be told."""
    return bool(_alike(language) & _known())


@dataclass
class SourceLanguage:
    """What a source's documents were found to be in, against what it says.

    Attributes:
        language: the tag that the source gives.
        checked: documents looked at.
        others: of these, how many were surely in each other language.
    """

    language: str
    checked: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def verify(self, domain: str, source: str) -> None:
        """Check that the tag fits at least half of what was looked at.

        Raises:
            InputError: names domain, source and the language of most documents.
        """
        if self.language != NO_LANGUAGE and not is_known(self.language):
            log.warning(
                "domain %s, source %s: no text can be told to be %s, so its documents' language "
                "is not checked (zxx for source code)",
                domain,
                source,
                self.language,
            )
        if self.checked < MIN_CHECKED or not self.others:
            return
        found, count = min(self.others.items(), key=lambda item: (-item[1], item[0]))
        if 2 * count > self.checked:
            raise InputError(
                f"domain {domain}, source {source} says language {self.language}, but {count} of "
                f"{self.checked} documents are {found}: correct `language` in configs/domains.yaml"
            )


def _sample(text: str, characters: int) -> str:
    """The text, or as many characters of it from its beginning, its end and between."""
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
def _known() -> frozenset[str]:
    return frozenset(_identifier().labels) - {NO_LANGUAGE}


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
