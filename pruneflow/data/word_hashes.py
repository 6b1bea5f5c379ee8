"""Hashes of words and word n-grams, for decontamination and near-duplicate detection."""

import re
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy

# Scripts written without spaces: each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(r"\w+")
_WORD_OR_CHARACTER = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")

_MULTIPLIER = 0x9E3779B97F4A7C15


class HashedWords(NamedTuple):
    """The words of a text.

    Attributes:
        words: in lower case, without punctuation. In scripts without spaces (Chinese, Japanese,
            Thai, ...) each character is a word.
        hashes: a hash of every word, uint64 of shape [words]; equal in every process.
    """

    words: list[str]
    hashes: numpy.ndarray


def hash_words(text: str) -> HashedWords:
    """Split a text into words, and hash them."""
    lower = text.lower()
    unspaced = not lower.isascii() and _HAS_UNSPACED.search(lower)
    words = (_WORD_OR_CHARACTER if unspaced else _WORD).findall(lower)
    return HashedWords(words, numpy.fromiter(map(_word_hash, words), numpy.uint64, len(words)))


def ngram_hashes(hashes: numpy.ndarray, length: int) -> numpy.ndarray:
    """Return a hash of every word n-gram, in order.

    Args:
        hashes: of the words, uint64 of shape [words, ...].
        length: words in an n-gram.

    Returns:
        uint64 of shape [words - length + 1, ...], empty when there are fewer words.
    """
    count = max(0, len(hashes) - length + 1)
    multiplier = numpy.uint64(_MULTIPLIER)
    mixed = numpy.zeros((count, *hashes.shape[1:]), dtype=numpy.uint64)
    for start in range(length if count else 0):
        mixed = mixed * multiplier + hashes[start : start + count]
        mixed ^= mixed >> numpy.uint64(29)
    return mixed


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "surrogatepass"))
