"""Sampling of token blocks from documents, in one pass over them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from pruneflow.data.documents import TABLE
from pruneflow.errors import InputError
from pruneflow.progress import track
from pruneflow.settings.calibration import CalibrationSettings
from pruneflow.settings.recovery import RecoverySettings
from pruneflow.tokens.mixture import Mixture
from pruneflow.tokens.packing import PackedBlocks, Packer, tokens_of

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


def sample_blocks(
    requests: list[BlockRequest], batches: Iterable[list[Document]], tokenizer: Any, seed: int
) -> dict[BlockRequest, PackedBlocks]:
    """Read the documents once, and pack each one's tokens for all requests that use it.

    Args:
        requests: number and length of the blocks of each split and domain.
        batches: the documents, in order; a batch is tokenized at once.
        tokenizer: a transformers tokenizer with an end-of-text token.
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
        packer = Packer(request.length, tokenizer.eos_token_id, request.most, key)
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
