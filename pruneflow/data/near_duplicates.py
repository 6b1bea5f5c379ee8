"""Near-duplicate detection by MinHash over word 5-grams.

A signature estimates the Jaccard similarity of two sets of n-grams (Broder 1997); signatures are
compared only if one of their bands is equal (locality-sensitive hashing). They are stored in a file
and read band by band, so memory hardly grows with the number of texts.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import IO, Any

import numpy
from datasketch import MinHash

from pruneflow.data.word_hashes import ngram_hashes

PERMUTATIONS = 64
NGRAM_WORDS = 5
RECALL = 0.99
"""Probability that two texts with exactly the given similarity share a band."""

_CHUNK = 8192


class Signatures:
    """MinHash signatures of texts, in a file.

        with tempfile.TemporaryFile() as file:
            signatures = Signatures(file)
            for text in texts:
                signatures.add(hash_words(text).hashes)
            for later, earlier in signatures.near_duplicates(0.8): ...

    Args:
        file: an empty file, open for reading and writing; 256 bytes per text.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._count = 0

    def add(self, hashes: numpy.ndarray) -> None:
        """Add a text by the hashes of its words; texts are numbered from 0."""
        self._file.write(signature(hashes).tobytes())
        self._count += 1

    def near_duplicates(
        self, similarity: float, exclude: numpy.ndarray | None = None
    ) -> numpy.ndarray:
        """Find the texts to drop so that no two near-duplicates that share a band remain.

        Any subset of the remaining texts has no such pair either.

        Args:
            similarity: Jaccard similarity from which two texts are near-duplicates.
            exclude: numbers of texts to ignore.

        Returns:
            int64 of shape [near-duplicates, 2], ascending: a text's number, and that of the
            earlier text it is similar to.
        """
        self._file.flush()
        remaining = numpy.ones(self._count, dtype=bool)
        if exclude is not None:
            remaining[exclude] = False
        found: list[tuple[int, int]] = []
        bands, rows = banding(similarity)
        for band in range(bands if self._count else 0):
            keys = self._band(band * rows, (band + 1) * rows)
            for bucket in _buckets(keys, numpy.flatnonzero(remaining)):
                for later, earlier in self._compare(bucket, similarity):
                    remaining[later] = False
                    found.append((later, earlier))
        return numpy.array(sorted(found), dtype=numpy.int64).reshape(-1, 2)

    def _compare(self, bucket: numpy.ndarray, similarity: float) -> Iterator[tuple[int, int]]:
        """Compare each text of a bucket with the earlier ones that are kept."""
        kept = numpy.empty((len(bucket), PERMUTATIONS), dtype=numpy.uint32)
        numbers: list[int] = []
        for number in bucket.tolist():
            (own,) = self._read(number, 1)
            shares = (kept[: len(numbers)] == own).mean(axis=1)
            alike = numpy.flatnonzero(shares >= similarity)
            if len(alike):
                yield number, numbers[alike[0]]
            else:
                kept[len(numbers)] = own
                numbers.append(number)

    def _band(self, start: int, end: int) -> numpy.ndarray:
        """Return one hash of the values [start, end) of every signature, uint64."""
        parts = []
        for first in range(0, self._count, _CHUNK):
            values = self._read(first, _CHUNK)[:, start:end].T.astype(numpy.uint64)
            parts += list(ngram_hashes(values, end - start))
        return numpy.concatenate(parts)

    def _read(self, first: int, count: int) -> numpy.ndarray:
        size = 4 * PERMUTATIONS
        self._file.seek(first * size)
        content = self._file.read(count * size)
        return numpy.frombuffer(content, dtype=numpy.uint32).reshape(-1, PERMUTATIONS)


def signature(hashes: numpy.ndarray) -> numpy.ndarray:
    """Return the MinHash signature of a text, uint32 of shape [64].

    Args:
        hashes: of its words (`hash_words`); a text of fewer than five words is one n-gram.
    """
    length = max(1, min(NGRAM_WORDS, len(hashes)))
    mixed = ngram_hashes(hashes, length)
    ngrams = numpy.unique((mixed >> numpy.uint64(32)).astype(numpy.uint32))
    minhash = MinHash(PERMUTATIONS, hashfunc=int, scheme="affine32", permutations=_permutations())
    minhash.update_batch(ngrams.tolist())
    return minhash.hashvalues


@lru_cache(maxsize=64)
def banding(similarity: float) -> tuple[int, int]:
    """Return the number of bands of a signature, and the number of values in each.

    The longest bands, which give the fewest comparisons, that two texts of this similarity share
    with a probability of at least `RECALL`: 1 - (1 - similarity^rows)^bands.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


@lru_cache(maxsize=1)
def _permutations() -> Any:
    return MinHash(PERMUTATIONS, scheme="affine32").permutations


def _buckets(keys: numpy.ndarray, numbers: numpy.ndarray) -> Iterator[numpy.ndarray]:
    """Yield groups of numbers, ascending, that share a key."""
    order = numbers[numpy.argsort(keys[numbers], kind="stable")]
    starts = numpy.flatnonzero(numpy.diff(keys[order], prepend=~keys[order[:1]]))
    sizes = numpy.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        yield order[start : start + size]
