"""Drift of a pruned model from the dense one, beyond perplexity.

The signs of degradation are those of *Model Hemorrhage* (arXiv 2503.23924): divergence of the
next-token distributions, agreement on the most likely token, entropy, norms of the hidden states,
and repetition in greedy text.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import GenerationConfig, PreTrainedModel

from pruneflow.errors import InputError
from pruneflow.measure.perplexity import (
    NonFiniteLossError,
    evaluating,
    finite_perplexity,
    window_batches,
)
from pruneflow.models.round_record import DomainPair, Drift, Validation
from pruneflow.models.structure import layers_of
from pruneflow.progress import track
from pruneflow.records import DomainLoss

PROMPT_TOKENS = 32
NEW_TOKENS = 48
NGRAM = 4
_POSITIONS = 256  # compared at once, as float32 copies of [256, vocabulary]
# Sums over tokens, in the order of `_sums`.
_SUMS = ("dense nll", "pruned nll", "kl", "agreed", "dense entropy", "pruned entropy")


def compare_models(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    blocks: Mapping[str, Tensor],
    batch_tokens: int,
    label: str,
) -> tuple[Validation, Drift]:
    """Run both models on the same windows once, and continue one window of each domain with both.

    Log-softmax is float32, sums are float64, and all tokens of a window but the first are scored,
    as in `perplexity_by_domain`.

    Args:
        dense: the unpruned model.
        pruned: a model that was cut from it: the same layers and vocabulary.
        blocks: windows of token ids by domain, each ``[windows, T]`` without padding.
        batch_tokens: maximum tokens whose logits are in memory at once, over both models.
        label: name on the progress bar.

    Returns:
        The losses of both models, and how far the pruned one has drifted. Norms are means of
        logarithms because a few tokens (mostly first ones) have norms hundreds of times the
        others', which would dominate a root mean square.

    Raises:
        InputError: a domain has no windows, or the dense model gives NaN or infinity.
        NonFiniteLossError: the pruned model gives NaN or infinity.
    """
    # Half the tokens in a pass: the logits of both models are in memory at once.
    batches = window_batches(blocks, batch_tokens // 2)
    sums = {domain: torch.zeros(len(_SUMS), dtype=torch.float64) for domain in blocks}
    norms = torch.zeros(len(layers_of(dense)), dtype=torch.float64)
    with torch.inference_mode(), evaluating(dense), evaluating(pruned):
        for domain, batch in track(batches, label):
            ids = batch.to(device=dense.device, dtype=torch.long)
            (dense_logits, before), (pruned_logits, after) = _run(dense, ids), _run(pruned, ids)
            sums[domain] += _sums(dense_logits, pruned_logits, ids).cpu()
            norms += (after - before).sum(dim=1).cpu()
            _check_finite(domain, sums[domain], norms)
        repetitions = _repetitions({"dense": dense, "pruned": pruned}, blocks, batch_tokens, label)
    tokens = {domain: windows[:, 1:].numel() for domain, windows in blocks.items()}
    means = {
        name: {domain: float(sums[domain][place]) / tokens[domain] for domain in blocks}
        for place, name in enumerate(_SUMS)
    }
    return (
        Validation(
            dense=_losses(means["dense nll"], tokens), pruned=_losses(means["pruned nll"], tokens)
        ),
        Drift(
            kl=means["kl"],
            top1_agreement=means["agreed"],
            entropy=DomainPair(dense=means["dense entropy"], pruned=means["pruned entropy"]),
            repetition=repetitions,
            norms=(norms / sum(windows.numel() for windows in blocks.values())).tolist(),
        ),
    )


def repetition(ids: list[int]) -> float:
    """Return seq-rep-4: 1 minus the share of distinct 4-grams (arXiv 1908.04319).

    Args:
        ids: a continuation, without its prompt.

    Returns:
        0 if no 4-gram repeats; near 1 if the text loops.
    """
    grams = [tuple(ids[start : start + NGRAM]) for start in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def greedy_text(
    model: PreTrainedModel, prompts: Tensor, new_tokens: int, batch_tokens: int
) -> Tensor:
    """Continue prompts of equal length with the most likely token at each step.

    The model's own generation settings are ignored, because a repetition penalty would hide the
    repetition to be measured. End-of-text tokens are suppressed, so all texts have the same length.

    Args:
        model: a causal language model.
        prompts: token ids ``[prompts, T]``.
        new_tokens: tokens to generate.
        batch_tokens: maximum tokens in one batch, prompts and new tokens together.

    Returns:
        The new tokens, ``[prompts, new_tokens]``, on the CPU.
    """
    network: Any = model
    own = network.generation_config
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        use_cache=True,
        eos_token_id=own.eos_token_id,
        pad_token_id=0,  # never generated: no text ends early
    )
    rows = max(1, batch_tokens // (prompts.shape[1] + new_tokens))
    network.generation_config = settings
    try:
        written = [
            network.generate(
                batch.to(device=model.device, dtype=torch.long),
                attention_mask=torch.ones_like(batch, device=model.device),
            ).cpu()
            for batch in prompts.split(rows)
        ]
    finally:
        network.generation_config = own
    return torch.cat(written)[:, prompts.shape[1] :]


def _run(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of a forward pass, and the norms of the hidden states.

    Returns:
        Logits ``[n, T, vocabulary]``, and ``[layers, n * T]``: the logarithm of the norm of each
        token's hidden state after each layer.
    """
    norms: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        norm = torch.linalg.vector_norm(hidden.flatten(0, -2), dim=-1, dtype=torch.float64)
        norms.append(norm.log().to(ids.device))

    handles = [layer.module.register_forward_hook(keep) for layer in layers_of(model)]
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.stack(norms)


def _sums(dense: Tensor, pruned: Tensor, ids: Tensor) -> Tensor:
    """Return the `_SUMS` over the scored tokens of a batch, float64."""
    total = torch.zeros(len(_SUMS), dtype=torch.float64, device=ids.device)
    for row in zip(dense[:, :-1], pruned[:, :-1], ids[:, 1:], strict=True):
        parts = (part.split(_POSITIONS) for part in row)
        for left, right, targets in zip(*parts, strict=True):
            p, q = log_softmax(left.float(), dim=-1), log_softmax(right.float(), dim=-1)
            by_token = (
                -p.gather(1, targets[:, None])[:, 0],
                -q.gather(1, targets[:, None])[:, 0],
                kl_div(q, p, reduction="none", log_target=True).sum(dim=-1),
                p.argmax(dim=-1) == q.argmax(dim=-1),
                torch.special.entr(p.exp()).sum(dim=-1),
                torch.special.entr(q.exp()).sum(dim=-1),
            )
            total += torch.stack([values.double().sum() for values in by_token])
    return total


def _check_finite(domain: str, sums: Tensor, norms: Tensor) -> None:
    """Raise an error if a sum is not finite."""
    finite = torch.isfinite(sums).tolist()
    if not finite[0]:
        raise InputError(
            f"the dense model gives no finite loss on {domain}: its weights are damaged; restore "
            "it, or try compute.dtype float32"
        )
    if not all(finite) or not bool(torch.isfinite(norms).all()):
        raise NonFiniteLossError(
            f"the pruned model gives no finite loss on {domain}: its weights are damaged, or it "
            "was pruned too far; try a lower ratio or compute.dtype float32"
        )


def _losses(means: Mapping[str, float], tokens: Mapping[str, int]) -> dict[str, DomainLoss]:
    return {
        domain: {
            "nll": mean * tokens[domain],
            "tokens": tokens[domain],
            "perplexity": finite_perplexity(domain, mean),
        }
        for domain, mean in means.items()
    }


def _repetitions(
    models: Mapping[str, PreTrainedModel],
    blocks: Mapping[str, Tensor],
    batch_tokens: int,
    label: str,
) -> DomainPair:
    """Measure the repetition in each model's continuation of every domain's first window."""
    config = models["dense"].config
    longest = int(getattr(config, "max_position_embeddings", None) or PROMPT_TOKENS + NEW_TOKENS)
    shortest = min(windows.shape[1] for windows in blocks.values())
    length = min(PROMPT_TOKENS, shortest, max(1, longest - NEW_TOKENS))
    prompts = torch.stack([windows[0, :length] for windows in blocks.values()])
    new = min(NEW_TOKENS, longest - length)
    found = {}
    for name, model in track(list(models.items()), f"{label} text"):
        texts = greedy_text(model, prompts, new, batch_tokens).tolist()
        found[name] = dict(zip(blocks, map(repetition, texts), strict=True))
    return DomainPair(**found)
