"""Sampling of token blocks from the table of documents, in one pass over it."""

import math
from collections.abc import Iterator, Sequence
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
        setting: the setting of the number, for errors; None to use as many as there are.
    """

    split: str
    domain: str
    length: int
    length_setting: str
    least: int
    most: int
    setting: str | None

    @property
    def source(self) -> str:
        """The split of the documents that the blocks are packed from."""
        return "calibration" if self.split == "recovery" else self.split

    def check_length(self, longest: int) -> None:
        """Check that the model supports the length.

        Raises:
            InputError: a block is longer than `longest`.
        """
        if self.length > longest:
            raise InputError(
                f"{self.length_setting} is {self.length}, and the model supports sequences of up "
                f"to {longest} tokens (max_position_embeddings): lower it"
            )

    def check(self, available: int) -> None:
        """Check that a domain has enough blocks.

        Raises:
            InputError: it has fewer than `least`.
        """
        if available < self.least:
            raise InputError(
                f"domain {self.domain} has {available} {self.split} sequences of {self.length} "
                f"tokens, and {self.least} are needed: lower "
                f"{self.setting or self.length_setting}, or add sources to {self.domain} in "
                "configs/domains.yaml"
            )


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
    size = "calibration.tokens" if settings.tokens else "calibration.sequences"
    length = (settings.sequence_length, "calibration.sequence_length")
    test_length = (settings.test_sequence_length, "calibration.test_sequence_length")
    validation, test = settings.validation_sequences, settings.test_sequences
    requests = []
    for domain, count in mixture.counts.items():
        most = math.ceil(settings.reserve * count)
        requests.append(BlockRequest("calibration", domain, *length, count, most, size))
        setting = "calibration.validation_sequences"
        requests.append(
            BlockRequest("validation", domain, *length, validation, validation, setting)
        )
        if recovery is not None and recovery.token_budget:
            recovery_length = (recovery.sequence_length, "recovery.sequence_length")
            most = -(-recovery.token_budget // recovery.sequence_length)
            requests.append(BlockRequest("recovery", domain, *recovery_length, 1, most, None))
    requests += [
        BlockRequest("test", domain, *test_length, test, test, "calibration.test_sequences")
        for domain in measured
    ]
    return requests


def sample_blocks(
    requests: list[BlockRequest],
    documents_dir: Path,
    tokenizer: Any,
    beginning: list[int],
    seed: int,
) -> dict[BlockRequest, PackedBlocks]:
    """Read the table once, and pack each document's tokens for all requests that use it.

    Args:
        requests: number and length of the blocks of each split and domain.
        documents_dir: folder of the table of documents.
        tokenizer: a transformers tokenizer with an end-of-text token.
        beginning: token ids at the beginning of every block.
        seed: for sampling; the split test does not depend on it.

    Raises:
        InputError: a domain has too few tokens.
    """
    packers = {
        request: Packer(
            request.length,
            beginning,
            tokenizer.eos_token_id,
            request.most,
            # Test blocks are the same for every seed.
            f"{request.split}/{request.domain}" + ("" if request.split == "test" else f":{seed}"),
        )
        for request in requests
    }
    readers: dict[tuple[str, str], list[Packer]] = {}
    for request, packer in packers.items():
        readers.setdefault((request.domain, request.source), []).append(packer)
    for rows in _documents(documents_dir):
        rows = [row for row in rows if row[:2] in readers]
        encoded = tokens_of([text for _, _, text in rows], tokenizer)
        documents: dict[tuple[str, str], list[list[int]]] = {}
        for (domain, split, _), tokens in zip(rows, encoded, strict=True):
            documents.setdefault((domain, split), []).append(tokens)
        for key, of_key in documents.items():
            for packer in readers[key]:
                packer.add(of_key)
    packed = {request: packer.sampled() for request, packer in packers.items()}
    for request, found in packed.items():
        request.check(found.available)
    return packed


def _documents(documents_dir: Path) -> Iterator[list[tuple[str, str, str]]]:
    """Yield (domain, split, text) in batches, in the table's order."""
    with pyarrow.parquet.ParquetFile(documents_dir / TABLE) as table:
        total = -(-table.metadata.num_rows // BATCH_DOCUMENTS)
        batches = table.iter_batches(BATCH_DOCUMENTS, columns=["domain", "split", "text"])
        for batch in track(batches, "tokens", total):
            columns = (batch.column(name).to_pylist() for name in ("domain", "split", "text"))
            yield list(zip(*columns, strict=True))
