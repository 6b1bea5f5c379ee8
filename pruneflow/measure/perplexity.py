"""Perplexity of a causal language model, domain by domain, on windows of packed tokens."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.errors import InputError
from pruneflow.progress import track
from pruneflow.records import DomainLoss


class NonFiniteLossError(InputError):
    """A model's loss is NaN or infinite."""


def perplexity_by_domain(
    model: PreTrainedModel,
    blocks: dict[str, Tensor],
    batch_tokens: int,
    label: str,
) -> dict[str, DomainLoss]:
    """Score every window independently and sum over each domain.

    Args:
        model: a causal language model on any device.
        blocks: windows of token ids by domain, each ``[windows, T]`` without padding.
        batch_tokens: maximum tokens in one forward pass (at least one window).
        label: name on the progress bar.

    Returns:
        For each domain the negative log-likelihood of tokens 2..T of each window, summed over all
        and by window, the number of these tokens, and the perplexity. Log-softmax is float32, sums
        are float64.

    Raises:
        InputError: a domain has no windows.
        NonFiniteLossError: the model gives no finite loss on a domain.
    """
    losses: dict[str, list[float]] = {domain: [] for domain in blocks}
    with torch.inference_mode(), evaluating(model):
        for domain, batch in track(window_batches(blocks, batch_tokens), label):
            batch_losses = _window_losses(model, batch)
            if not all(math.isfinite(loss) for loss in batch_losses):
                raise NonFiniteLossError(
                    f"the model gives no finite loss on {domain}: its weights are damaged, or it "
                    "was pruned too far; try a lower ratio or compute.dtype float32"
                )
            losses[domain] += batch_losses
    scored: dict[str, DomainLoss] = {}
    for domain, windows in blocks.items():
        nll, tokens = math.fsum(losses[domain]), windows[:, 1:].numel()
        perplexity = finite_perplexity(domain, nll / tokens)
        scored[domain] = {
            "nll": nll,
            "tokens": tokens,
            "perplexity": perplexity,
            "windows": losses[domain],
        }
    return scored


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Set a model to evaluation mode, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def window_batches(blocks: Mapping[str, Tensor], batch_tokens: int) -> list[tuple[str, Tensor]]:
    """Split the windows of every domain into batches of at most `batch_tokens` tokens.

    Raises:
        InputError: a domain has no windows.
    """
    for domain, windows in blocks.items():
        if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
            raise InputError(
                f"domain {domain} has no windows to score (shape {list(windows.shape)}): "
                "give it more text"
            )
    return [
        (domain, batch)
        for domain, windows in blocks.items()
        for batch in windows.split(max(1, batch_tokens // windows.shape[1]))
    ]


def finite_perplexity(domain: str, mean_loss: float) -> float:
    """Return the perplexity for a mean loss in nats per token.

    Raises:
        NonFiniteLossError: it would overflow.
    """
    if mean_loss > 700:  # a uniform guess over a million words has a mean of 14
        raise NonFiniteLossError(
            f"the model gives no finite perplexity on {domain} (mean loss {mean_loss:.0f}): "
            "its weights are damaged, or it was pruned too far; try a lower ratio"
        )
    return math.exp(mean_loss)


def with_bytes(
    losses: Mapping[str, DomainLoss],
    blocks: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, DomainLoss]:
    """Add ``bytes`` and ``bits_per_byte`` to the losses on `blocks`.

    Bits per byte is the negative log-likelihood, end-of-text tokens included, over the bytes of
    the text (The Pile, arXiv 2101.00027, section 3.1): unlike perplexity it does not depend on
    how the tokenizer cuts the text.

    Args:
        losses: the result of `perplexity_by_domain` for `blocks`.
        blocks: windows of token ids by domain, each ``[windows, T]``.
        tokenizer: the model's tokenizer.
    """
    scored = {domain: blocks[domain][:, 1:].flatten().tolist() for domain in losses}
    lengths = bytes_by_token(tokenizer, {token for ids in scored.values() for token in ids})
    counted: dict[str, DomainLoss] = {}
    for domain, loss in losses.items():
        size = sum(lengths[token] for token in scored[domain])
        if size == 0:
            raise InputError(f"domain {domain} holds no text, only special tokens")
        counted[domain] = {**loss, "bytes": size, "bits_per_byte": loss["nll"] / size / math.log(2)}
    return counted


def bytes_by_token(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> dict[int, int]:
    """Return the number of UTF-8 bytes of text of each token id; 0 for special tokens.

    A token may end inside a character, so decoding it alone does not work: in a byte-level
    vocabulary (GPT-2's) each letter of a token's name is a byte; elsewhere (SentencePiece) the
    name is the text with U+2581 for a space, or ``<0xE4>`` for a byte.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = backend is not None and "ByteLevel" in str(getattr(backend, "decoder", ""))
    special = set(tokenizer.all_special_ids)
    added = {number: name for name, number in tokenizer.get_added_vocab().items()}

    def length(token: int) -> int:
        if token in special:
            return 0
        if token in added:
            return len(added[token].encode())
        name = str(tokenizer.convert_ids_to_tokens(token))
        if byte_level:
            return len(name)
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return 1
        return len(name.replace("\u2581", " ").encode())

    return {token: length(token) for token in ids}


def _window_losses(model: PreTrainedModel, batch: Tensor) -> list[float]:
    """Return the summed negative log-likelihood of tokens 2..T of each row of `batch`."""
    ids = batch.to(device=model.device, dtype=torch.long)
    logits = model(input_ids=ids, use_cache=False).logits
    # Row by row: a float32 copy of all logits at once would dominate memory.
    return [
        float(cross_entropy(row[:-1].float(), targets[1:], reduction="none").double().sum())
        for row, targets in zip(logits, ids, strict=True)
    ]
