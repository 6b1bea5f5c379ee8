"""Perplexity of a causal language model, domain by domain, on windows of packed tokens."""

import math
from typing import TYPE_CHECKING, TypedDict

from pruneflow.errors import InputError
from pruneflow.progress import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class NonFiniteLossError(InputError):
    """A model gives NaN or infinity where a loss belongs."""


class DomainLoss(TypedDict):
    """What a model makes of one domain."""

    nll: float  # sum of -log p over all scored tokens, natural logarithm
    tokens: int  # scored tokens: all but the first of each window
    perplexity: float  # exp(nll / tokens)


def perplexity_by_domain(
    model: "PreTrainedModel",
    blocks: "dict[str, Tensor]",
    batch_tokens: int,
    label: str,
) -> dict[str, DomainLoss]:
    """Score every window alone and sum over each domain.

    Args:
        model: a causal language model on any device.
        blocks: windows of token ids by domain, each ``[windows, T]`` without padding.
        batch_tokens: tokens in one forward pass, at most (at least one window is taken).
        label: names the work on the progress bar.

    Returns:
        For each domain the summed negative log-likelihood of tokens 2..T of each window, the
        number of tokens behind it, and the perplexity. Log-softmax is float32, sums are float64.

    Raises:
        InputError: a domain has no windows.
        NonFiniteLossError: the model gives no finite loss on a domain.
    """
    import torch

    for domain, windows in blocks.items():
        if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
            raise InputError(
                f"domain {domain} has no windows to score (shape {list(windows.shape)}): "
                "give it more text"
            )
    batches = [
        (domain, batch)
        for domain, windows in blocks.items()
        for batch in windows.split(max(1, batch_tokens // windows.shape[1]))
    ]
    sums = dict.fromkeys(blocks, 0.0)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for domain, batch in track(batches, label):
                loss = _window_loss(model, batch)
                if not math.isfinite(loss):
                    raise NonFiniteLossError(
                        f"the model gives no finite loss on {domain}: its weights are damaged, or "
                        "it was pruned too far; try a lower ratio or compute.dtype float32"
                    )
                sums[domain] += loss
    finally:
        model.train(was_training)
    return {
        domain: _domain_loss(domain, sums[domain], windows.shape[0] * (windows.shape[1] - 1))
        for domain, windows in blocks.items()
    }


def _window_loss(model: "PreTrainedModel", batch: "Tensor") -> float:
    """Return the summed negative log-likelihood of tokens 2..T of each row of `batch`."""
    import torch
    from torch.nn.functional import cross_entropy

    ids = batch.to(device=model.device, dtype=torch.long)
    logits = model(input_ids=ids, use_cache=False).logits
    # Row by row: a float32 copy of all logits at once would be the largest thing in memory.
    return sum(
        float(cross_entropy(row[:-1].float(), targets[1:], reduction="none").double().sum())
        for row, targets in zip(logits, ids, strict=True)
    )


def _domain_loss(domain: str, nll: float, tokens: int) -> DomainLoss:
    mean = nll / tokens
    if mean > 700:  # exp would overflow; a uniform guess over a million words has a mean of 14
        raise NonFiniteLossError(
            f"the model gives no finite perplexity on {domain} (mean loss {mean:.0f}): "
            "its weights are damaged, or it was pruned too far; try a lower ratio"
        )
    return {"nll": nll, "tokens": tokens, "perplexity": math.exp(mean)}
