"""Documents joined into a stream of tokens, cut into blocks, and some of the blocks drawn.

The documents of one domain and split form one stream with the end-of-text token between
documents; the stream is cut into blocks of equal length and what is left over at its end is not
used, so no block holds padding. Blocks are drawn from the whole stream: one long document does
not fill the set. All in one pass, which keeps the drawn blocks alone.
"""

import heapq
import random
from array import array
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy


@dataclass(frozen=True)
class Drawn:
    """Blocks in the order in which they were drawn.

    Attributes:
        blocks: token ids, ``[blocks, length]``, int32.
        documents: for each block, which documents of the stream (counted from 0) have tokens in
            it.
        available: how many blocks the stream had.
    """

    blocks: numpy.ndarray
    documents: list[range]
    available: int


class Packer:
    """A stream of documents of which some blocks are kept.

    Each block gets a random number and those with the lowest are kept, lowest first: fewer blocks
    of the same stream are the first of more.

    Args:
        length: tokens in a block.
        separator: the token id between two documents.
        most: blocks to keep.
        key: seeds the random numbers.
    """

    def __init__(self, length: int, separator: int, most: int, key: str) -> None:
        """Start with an empty stream."""
        self._length, self._separator, self._most = length, separator, most
        self._random = random.Random(key)
        self._kept: list[tuple[float, int, numpy.ndarray]] = []
        self._starts = array("q")  # where in the stream each document starts
        self._blocks = self._tokens = 0
        self._rest: list[int] = []

    def add(self, documents: list[list[int]]) -> None:
        """Go on with the token ids of more documents."""
        pieces = [self._rest]
        for tokens in documents:
            if self._starts:
                pieces.append([self._separator])
                self._tokens += 1
            self._starts.append(self._tokens)
            pieces.append(tokens)
            self._tokens += len(tokens)
        stream = numpy.fromiter(chain.from_iterable(pieces), dtype=numpy.int32)
        whole = len(stream) // self._length * self._length
        for block in stream[:whole].reshape(-1, self._length):
            # Negative, for the heap's first is its lowest, and the highest number goes first.
            item = (-self._random.random(), -self._blocks, block)
            self._blocks += 1
            if len(self._kept) < self._most:
                heapq.heappush(self._kept, (*item[:2], block.copy()))
            elif item > self._kept[0]:
                heapq.heapreplace(self._kept, (*item[:2], block.copy()))
        self._rest = stream[whole:].tolist()

    def drawn(self) -> Drawn:
        """The blocks kept of what was added."""
        kept = sorted(self._kept, key=lambda item: item[:2], reverse=True)
        blocks = numpy.empty((len(kept), self._length), dtype=numpy.int32)
        for row, (_, _, block) in enumerate(kept):
            blocks[row] = block
        first = numpy.array([-index * self._length for _, index, _ in kept], dtype=numpy.int64)
        starts = numpy.asarray(self._starts, dtype=numpy.int64)
        # A separator is the end of the document before it.
        opening = numpy.searchsorted(starts, first, side="right") - 1
        closing = numpy.searchsorted(starts, first + self._length - 1, side="right")
        documents = [range(*span) for span in zip(opening.tolist(), closing.tolist(), strict=True)]
        return Drawn(blocks, documents, self._blocks)


def tokens_of(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """The token ids of each text, without special tokens."""
    if not texts:
        return []
    # verbose=False: a document longer than the model's context is expected here, and cut.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
