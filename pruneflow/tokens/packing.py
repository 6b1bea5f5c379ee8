"""Packing of documents into token blocks, and sampling of the blocks.

The documents of a domain and split are concatenated with the end-of-text token between them, and
cut into blocks of equal length without padding; the remainder is dropped. Blocks are sampled from
the complete stream, so one long document cannot fill the set, in a single pass that stores only
the sampled blocks.
"""

import heapq
import random
from array import array
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy


@dataclass(frozen=True)
class PackedBlocks:
    """Sampled blocks, in sampling order.

    Attributes:
        blocks: token ids, ``[blocks, length]``, int32.
        documents: for each block, the documents of the stream (from 0) that have tokens in it.
        available: number of blocks in the stream.
    """

    blocks: numpy.ndarray
    documents: list[range]
    available: int


class Packer:
    """Packs a stream of documents and samples blocks from it.

    Each block gets a random number and the blocks with the lowest are kept, lowest first: a smaller
    sample of the same stream is a prefix of a larger one.

    Args:
        length: tokens in a block.
        separator: the token id between two documents.
        most: maximum number of blocks.
        key: seed of the random numbers.
    """

    def __init__(self, length: int, separator: int, most: int, key: str) -> None:
        self._length, self._separator, self._most = length, separator, most
        self._random = random.Random(key)
        self._kept: list[tuple[float, int, numpy.ndarray]] = []
        self._starts = array("q")  # where in the stream each document starts
        self._blocks = self._tokens = 0
        self._rest: list[int] = []

    def add(self, documents: list[list[int]]) -> None:
        """Add the token ids of more documents."""
        pieces = [self._rest]
        for tokens in documents:
            if self._starts:
                pieces.append([self._separator])
                self._tokens += 1
            self._starts.append(self._tokens)
            pieces.append(tokens)
            self._tokens += len(tokens)
        stream = numpy.fromiter(chain.from_iterable(pieces), dtype=numpy.int32)
        end = len(stream) // self._length * self._length
        for block in stream[:end].reshape(-1, self._length):
            # Negated, because heapq is a min-heap and the highest number must be replaced first.
            item = (-self._random.random(), -self._blocks, block)
            self._blocks += 1
            if len(self._kept) < self._most:
                heapq.heappush(self._kept, (*item[:2], block.copy()))
            elif item > self._kept[0]:
                heapq.heapreplace(self._kept, (*item[:2], block.copy()))
        self._rest = stream[end:].tolist()

    def sampled(self) -> PackedBlocks:
        """The blocks sampled so far."""
        kept = sorted(self._kept, key=lambda item: item[:2], reverse=True)
        blocks = numpy.empty((len(kept), self._length), dtype=numpy.int32)
        for row, (_, _, block) in enumerate(kept):
            blocks[row] = block
        first = numpy.array([-index * self._length for _, index, _ in kept], dtype=numpy.int64)
        starts = numpy.asarray(self._starts, dtype=numpy.int64)
        # A separator belongs to the document before it.
        opening = numpy.searchsorted(starts, first, side="right") - 1
        closing = numpy.searchsorted(starts, first + self._length - 1, side="right")
        documents = [range(*span) for span in zip(opening.tolist(), closing.tolist(), strict=True)]
        return PackedBlocks(blocks, documents, self._blocks)


def tokens_of(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """The token ids of each text, without special tokens."""
    if not texts:
        return []
    # verbose=False: no warning for documents longer than the model's context, which are cut later.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
