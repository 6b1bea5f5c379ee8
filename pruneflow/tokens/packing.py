"""Packing of documents into token blocks, and sampling of the blocks.

The documents of a domain and split are concatenated with the end-of-text token between them, and
cut into blocks of equal length without padding; the remainder is dropped. Every block begins as the
tokenizer begins a text, because many models need their beginning-of-text token. Blocks are sampled
from the complete stream, so one long document cannot fill the set, in a single pass that stores
only the sampled blocks.
"""

import heapq
import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import pyarrow.parquet

from pruneflow.data.documents import TABLE
from pruneflow.errors import InputError
from pruneflow.progress import track
from pruneflow.settings.calibration import AddBos, CalibrationSettings
from pruneflow.settings.recovery import RecoverySettings
from pruneflow.tokens.mixture import Mixture

BATCH_DOCUMENTS = 128

Document = tuple[str, str, str]
"""Domain, split and text of a document."""


@dataclass(frozen=True)
class BlockRequest:
    """Number and length of the blocks of one split and domain.

    Attributes:
        split: `calibration`, `validation`, `recovery` or `test`.
        domain: name of the domain.
        length: tokens in a block.
        length_setting: the setting of the length, for errors.
        least: fewer blocks are an error.
        most: more blocks are not stored.
        fix: how to get `least` blocks, for errors.
    """

    split: str
    domain: str
    length: int
    length_setting: str
    least: int
    most: int
    fix: str

    @property
    def source(self) -> str:
        """The split of the documents that the blocks are packed from."""
        return "calibration" if self.split == "recovery" else self.split


def block_requests(
    settings: CalibrationSettings,
    mixture: Mixture,
    recovery: RecoverySettings | None,
    measured: Sequence[str],
) -> list[BlockRequest]:
    """The blocks that the settings require.

    Test blocks are of every domain in `measured`, all others of the mixture's domains; recovery
    blocks only if recovery has a token budget.
    """
    length = (settings.sequence_length, "calibration.sequence_length")
    size = "calibration.tokens" if settings.tokens else "calibration.sequences"
    validation, test = settings.validation_sequences, settings.test_sequences

    def fix(domain: str, setting: str) -> str:
        return f"lower {setting}, or add sources to {domain} in configs/domains.yaml"

    requests = []
    for domain, count in mixture.counts.items():
        most = math.ceil(settings.reserve * count)
        requests.append(
            BlockRequest("calibration", domain, *length, count, most, fix(domain, size))
        )
        lower = fix(domain, "calibration.validation_sequences")
        requests.append(BlockRequest("validation", domain, *length, validation, validation, lower))
        if recovery is not None and recovery.token_budget:
            most = -(-recovery.token_budget // recovery.sequence_length)
            recovery_length = (recovery.sequence_length, "recovery.sequence_length")
            lower = fix(domain, "recovery.sequence_length")
            requests.append(BlockRequest("recovery", domain, *recovery_length, 1, most, lower))
    for domain in measured:
        length = (settings.test_sequence_length, "calibration.test_sequence_length")
        lower = fix(domain, "calibration.test_sequences")
        requests.append(BlockRequest("test", domain, *length, test, test, lower))
    return requests


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


def sample_blocks(
    requests: list[BlockRequest],
    batches: Iterable[list[Document]],
    tokenizer: Any,
    beginning: list[int],
    seed: int,
) -> dict[BlockRequest, PackedBlocks]:
    """Read the documents once, and pack each one's tokens for all requests that use it.

    Args:
        requests: number and length of the blocks of each split and domain.
        batches: the documents, in order; a batch is tokenized at once.
        tokenizer: a transformers tokenizer with an end-of-text token.
        beginning: token ids at the beginning of every block.
        seed: for sampling; the split test does not depend on it.

    Raises:
        InputError: a domain has too few tokens, or the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the model's tokenizer has no end-of-text token (eos_token): set one")
    packers = {}
    readers: dict[tuple[str, str], list[Packer]] = {}
    for request in requests:
        key = f"{request.split}/{request.domain}" + ("" if request.split == "test" else f":{seed}")
        packer = Packer(request.length, beginning, tokenizer.eos_token_id, request.most, key)
        packers[request] = packer
        readers.setdefault((request.domain, request.source), []).append(packer)
    for batch in batches:
        used = [document for document in batch if document[:2] in readers]
        documents: dict[tuple[str, str], list[list[int]]] = {}
        encoded = tokens_of([text for _, _, text in used], tokenizer)
        for (domain, split, _), tokens in zip(used, encoded, strict=True):
            documents.setdefault((domain, split), []).append(tokens)
        for source, of_source in documents.items():
            for packer in readers[source]:
                packer.add(of_source)
    packed = {request: packer.sampled() for request, packer in packers.items()}
    for request, found in packed.items():
        if found.available < request.least:
            raise InputError(
                f"domain {request.domain} has {found.available} {request.split} sequences of "
                f"{request.length} tokens, and {request.least} are needed: {request.fix}"
            )
    return packed


def read_batches(documents_dir: Path) -> Iterator[list[Document]]:
    """Yield the documents of the table in batches, in its order."""
    with pyarrow.parquet.ParquetFile(documents_dir / TABLE) as table:
        total = -(-table.metadata.num_rows // BATCH_DOCUMENTS)
        batches = table.iter_batches(BATCH_DOCUMENTS, columns=["domain", "split", "text"])
        for batch in track(batches, "tokens", total):
            columns = (batch.column(name).to_pylist() for name in ("domain", "split", "text"))
            yield list(zip(*columns, strict=True))


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
