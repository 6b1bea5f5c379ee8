"""Which blocks are drawn from the table of documents, in one pass over it."""

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
from pruneflow.tokens.packing import Drawn, Packer, tokens_of

TEXTS_AT_ONCE = 128


@dataclass(frozen=True)
class Wanted:
    """How many blocks of one split and domain are asked for, and by which settings.

    At least `least` and at most `most` are kept. Without a setting, as many as there are will do.
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
        """The split of the documents that the blocks are made of."""
        return "calibration" if self.split == "recovery" else self.split

    def check(self, available: int) -> None:
        """Refuse a domain that has too few blocks."""
        if available < self.least:
            raise InputError(
                f"domain {self.domain} has {available} {self.split} sequences of {self.length} "
                f"tokens, {self.least} are asked for: lower "
                f"{self.setting or self.length_setting}, or add sources to {self.domain} in "
                "configs/domains.yaml"
            )


def wanted_blocks(
    settings: CalibrationSettings,
    mixture: Mixture,
    recovery: RecoverySettings | None,
    measured: Sequence[str],
) -> list[Wanted]:
    """What the settings ask for: test blocks of every domain `measured`, others of the mixture's.

    Of the split recovery where it has a budget.
    """
    length, test_length = settings.sequence_length, settings.test_sequence_length
    ours, theirs = "calibration.sequence_length", "calibration.test_sequence_length"
    validation, test = settings.validation_sequences, settings.test_sequences
    wanted = []
    for domain, count in mixture.counts.items():
        most = math.ceil(settings.reserve * count)
        asked = "calibration.tokens" if settings.tokens else "calibration.sequences"
        wanted += [
            Wanted("calibration", domain, length, ours, count, most, asked),
            Wanted(
                "validation",
                domain,
                length,
                ours,
                validation,
                validation,
                "calibration.validation_sequences",
            ),
        ]
        if recovery is not None and recovery.token_budget:
            most = -(-recovery.token_budget // recovery.sequence_length)
            length_setting = "recovery.sequence_length"
            wanted.append(
                Wanted("recovery", domain, recovery.sequence_length, length_setting, 1, most, None)
            )
    wanted += [
        Wanted("test", domain, test_length, theirs, test, test, "calibration.test_sequences")
        for domain in measured
    ]
    return wanted


def draw_blocks(
    wanted: list[Wanted], documents_dir: Path, tokenizer: Any, seed: int
) -> dict[Wanted, Drawn]:
    """Go through the table once, and pack each document's tokens for all that want them.

    Args:
        wanted: what to draw.
        documents_dir: folder of the table of documents.
        tokenizer: a transformers tokenizer with an end-of-text token.
        seed: which blocks are drawn, but for the split test.

    Raises:
        InputError: a domain has too few tokens.
    """
    packers = {
        item: Packer(
            item.length,
            tokenizer.eos_token_id,
            item.most,
            # What is held out is the same whatever the seed.
            f"{item.split}/{item.domain}" + ("" if item.split == "test" else f":{seed}"),
        )
        for item in wanted
    }
    readers: dict[tuple[str, str], list[Packer]] = {}
    for item, packer in packers.items():
        readers.setdefault((item.domain, item.source), []).append(packer)
    for rows in _documents(documents_dir):
        rows = [row for row in rows if row[:2] in readers]
        encoded = tokens_of([text for _, _, text in rows], tokenizer)
        documents: dict[tuple[str, str], list[list[int]]] = {}
        for (domain, split, _), tokens in zip(rows, encoded, strict=True):
            documents.setdefault((domain, split), []).append(tokens)
        for key, of_key in documents.items():
            for packer in readers[key]:
                packer.add(of_key)
    drawn = {item: packer.drawn() for item, packer in packers.items()}
    for item, found in drawn.items():
        item.check(found.available)
    return drawn


def _documents(documents_dir: Path) -> Iterator[list[tuple[str, str, str]]]:
    """Yield (domain, split, text) of some documents at a time, in the table's order."""
    with pyarrow.parquet.ParquetFile(documents_dir / TABLE) as table:
        total = -(-table.metadata.num_rows // TEXTS_AT_ONCE)
        batches = table.iter_batches(TEXTS_AT_ONCE, columns=["domain", "split", "text"])
        for batch in track(batches, "tokens", total):
            columns = (batch.column(name).to_pylist() for name in ("domain", "split", "text"))
            yield list(zip(*columns, strict=True))
