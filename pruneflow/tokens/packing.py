"""Packing of documents into token blocks, and sampling of the blocks.

The documents of a domain and split are concatenated with the end-of-text token between them, and
cut into blocks of equal length without padding; the remainder is dropped. Every block begins as the
tokenizer begins a text, because many models need their beginning-of-text token. Blocks are sampled
from the complete stream, so one long document cannot fill the set, in a single pass that stores
only the sampled blocks.
"""

import heapq
import random
from array import array
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy

from pruneflow.errors import InputError

AddBos = bool | Literal["auto"]


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
        beginning: token ids at the beginning of every block.
        separator: the token id between two documents.
        most: maximum number of blocks.
        key: seed of the random numbers.
    """

    def __init__(
        self, length: int, beginning: list[int], separator: int, most: int, key: str
    ) -> None:
        """Start with an empty stream."""
        self._beginning, self._separator, self._most = beginning, separator, most
        self._length = length - len(beginning)  # of the text in a block
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
        before = len(self._beginning)
        blocks = numpy.empty((len(kept), before + self._length), dtype=numpy.int32)
        blocks[:, :before] = self._beginning
        for row, (_, _, block) in enumerate(kept):
            blocks[row, before:] = block
        first = numpy.array([-index * self._length for _, index, _ in kept], dtype=numpy.int64)
        starts = numpy.asarray(self._starts, dtype=numpy.int64)
        # A separator belongs to the document before it.
        opening = numpy.searchsorted(starts, first, side="right") - 1
        closing = numpy.searchsorted(starts, first + self._length - 1, side="right")
        documents = [range(*span) for span in zip(opening.tolist(), closing.tolist(), strict=True)]
        return PackedBlocks(blocks, documents, self._blocks)


def beginning_of(tokenizer: Any, add_bos: AddBos = "auto") -> list[int]:
    """The token ids before a text.

    Args:
        tokenizer: a transformers tokenizer.
        add_bos: whether to add the beginning-of-text token; ``auto`` for what the tokenizer itself
            puts before a text.

    Raises:
        InputError: the token is to be added and the tokenizer has none.
    """
    if add_bos != "auto":
        if add_bos and tokenizer.bos_token_id is None:
            raise InputError(
                "calibration.add_bos_token is true, but the model's tokenizer has no bos_token: "
                "set it to auto"
            )
        return [tokenizer.bos_token_id] if add_bos else []
    (text,) = tokens_of(["1"], tokenizer)
    (whole,) = tokens_of(["1"], tokenizer, add_special_tokens=True)
    return whole[: whole.index(text[0])]


def tokens_of(
    texts: list[str], tokenizer: Any, add_special_tokens: bool = False
) -> list[list[int]]:
    """The token ids of each text, by default without special tokens."""
    if not texts:
        return []
    # verbose=False: no warning for documents longer than the model's context, which are cut later.
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
