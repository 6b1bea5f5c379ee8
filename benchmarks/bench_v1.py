"""bench-v1: calibration text of six domains and seven held-out sets, as windows of tokens.

The folder's README documents the origin of each text and the held-out parts, which are never
calibrated on. Perplexity is computed on windows without overlap, so every token except the first of
a window is scored once.
"""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pruneflow.errors import InputError

DATA = Path(__file__).parent.parent.parent / "shared/data/bench-v1"
DOMAINS = ("web", "wiki", "code", "maths", "technical", "multilingual")
HELD_OUT = ("wikitext2", "web", "code", "humaneval", "gsm8k", "technical", "multilingual")

# Texts whose first three quarters are for calibration; the last quarter is held out.
_SPLIT = {
    "web": "c4.txt",
    "code": "code.txt",
    "technical": "technical.txt",
    "multilingual": "multilingual.txt",
}
_TRAINING_SHARE = 0.75
_GSM8K_TRAINING_CHARACTERS = 1_200_000
_GSM8K_TEST_CHARACTERS = 300_000


@dataclass(frozen=True)
class BenchText:
    """Tokens of every text, in order.

    Attributes:
        training: one row of token ids per domain of `DOMAINS`.
        held_out: one row of token ids per set of `HELD_OUT`.
    """

    training: dict[str, Tensor]
    held_out: dict[str, Tensor]


def read_bench(folder: Path, tokenizer: PreTrainedTokenizerBase) -> BenchText:
    """Read and tokenize all texts, without special tokens (a few seconds).

    Raises:
        InputError: the folder or a file of it is missing.
    """
    training = {
        "wiki": _text(folder, "wikitext2-valid.txt"),
        "maths": _gsm8k(folder, "gsm8k-train.jsonl")[:_GSM8K_TRAINING_CHARACTERS],
    }
    held_out = {
        "wikitext2": _text(folder, "wikitext2-test.txt"),
        "humaneval": _humaneval(folder),
        "gsm8k": _gsm8k(folder, "gsm8k-test.jsonl")[:_GSM8K_TEST_CHARACTERS],
    }
    for domain, name in _SPLIT.items():
        text = _text(folder, name)
        border = int(len(text) * _TRAINING_SHARE)
        training[domain], held_out[domain] = text[:border], text[border:]
    return BenchText(
        {domain: _tokens(training[domain], tokenizer) for domain in DOMAINS},
        {name: _tokens(held_out[name], tokenizer) for name in HELD_OUT},
    )


def calibration_blocks(
    text: BenchText,
    sequences: int,
    length: int,
    seed: int,
    domains: Iterable[str] = DOMAINS,
) -> dict[str, Tensor]:
    """Sample calibration sequences, equally many from each domain.

    Args:
        text: from `read_bench`.
        sequences: over all domains; the first domains get the remainder.
        length: tokens in a sequence.
        seed: for sampling windows, without replacement.
        domains: a subset of `DOMAINS`.

    Returns:
        Token ids per domain, ``[sequences, length]``.

    Raises:
        InputError: a domain has too little text, or is unknown.
    """
    names = list(domains)
    generator = torch.Generator().manual_seed(seed)
    blocks = {}
    for index, name in enumerate(names):
        if name not in text.training:
            raise InputError(f"bench-v1 has no domain {name}: choose from {', '.join(DOMAINS)}")
        count = sequences // len(names) + (index < sequences % len(names))
        windows = _windows(text.training[name], length)
        if not 0 < count <= len(windows):
            raise InputError(
                f"bench-v1 has {len(windows)} windows of {length} tokens of {name}, but {count} "
                "are needed: use fewer or shorter sequences, at least one per domain"
            )
        blocks[name] = windows[torch.randperm(len(windows), generator=generator)[:count]]
    return blocks


def windows_available(text: BenchText, domain: str, length: int) -> int:
    """Number of calibration sequences of this length in a domain."""
    return len(_windows(text.training[domain], length))


def recovery_blocks(
    text: BenchText, length: int, seed: int, validation_share: float = 0.02
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All training text for recovery, with a few windows as validation set for early stopping.

    Args:
        text: from `read_bench`.
        length: tokens in a sequence.
        seed: for sampling the validation windows.
        validation_share: share of each domain's windows for validation, at least one.

    Returns:
        Training and validation sequences per domain, ``[sequences, length]``. A budget
        above their tokens (0.9 M for SmolLM2) means several epochs.

    Raises:
        InputError: a domain has fewer than two windows.
    """
    generator = torch.Generator().manual_seed(seed)
    training, validation = {}, {}
    for name, tokens in text.training.items():
        windows = _windows(tokens, length)
        count = max(1, round(validation_share * len(windows)))
        if len(windows) <= count:
            raise InputError(
                f"bench-v1 has too little text of {name} for {length} tokens: use shorter sequences"
            )
        order = torch.randperm(len(windows), generator=generator)
        validation[name], training[name] = windows[order[:count]], windows[order[count:]]
    return training, validation


def held_out_windows(text: BenchText, windows: int = 100, length: int = 1024) -> dict[str, Tensor]:
    """The first windows of every held-out set, without overlap, ``[at most windows, length]``.

    Raises:
        InputError: a set has no window of that length.
    """
    found = {name: _windows(tokens, length)[:windows] for name, tokens in text.held_out.items()}
    for name, tensor in found.items():
        if len(tensor) == 0:
            raise InputError(
                f"bench-v1 has no window of {length} tokens of {name}: use shorter ones"
            )
    return found


def _windows(tokens: Tensor, length: int) -> Tensor:
    count = len(tokens) // length
    return tokens[: count * length].view(count, length)


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return torch.tensor(ids, dtype=torch.long)


def _text(folder: Path, name: str) -> str:
    return _bytes(folder, name).decode("utf-8")


def _gsm8k(folder: Path, name: str) -> str:
    rows = [json.loads(line) for line in _text(folder, name).splitlines()]
    return "\n\n".join(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows)


def _humaneval(folder: Path) -> str:
    lines = gzip.decompress(_bytes(folder, "humaneval.jsonl.gz")).decode("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return "\n\n".join(row["prompt"] + row["canonical_solution"] for row in rows)


def _bytes(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise InputError(
            f"bench-v1: {folder / name} cannot be read ({error.strerror}): give the folder of "
            "bench-v1 with --data"
        ) from None
