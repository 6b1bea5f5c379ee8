"""How far a pruned model has moved from the dense one, beyond the perplexity of the text.

The signs of degradation that *Model Hemorrhage* (arXiv 2503.23924) names: divergence of the next
token's distribution and of the likeliest token, its entropy, the norms of the hidden states, and
greedy text that repeats itself.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import GenerationConfig, PreTrainedModel

from pruneflow.errors import InputError
from pruneflow.measure.perplexity import NonFiniteLossError
from pruneflow.models.structure import layers_of
from pruneflow.progress import track
from pruneflow.records import DomainLoss

PROMPT_TOKENS = 32
NEW_TOKENS = 48
NGRAM = 4
_POSITIONS = 256  # whose distributions are looked at together: float32 copies of [256, vocabulary]
# Sums over tokens, in the order of `_sums`.
_SUMS = ("dense nll", "pruned nll", "kl", "agreed", "dense entropy", "pruned entropy")


def compare_models(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    blocks: Mapping[str, Tensor],
    batch_tokens: int,
    label: str,
) -> dict[str, Any]:
    """Run both models over the same windows once, and let both continue one window of each domain.

    Log-softmax is float32, sums are float64, and every token but the first of a window is
    predicted, as in `perplexity_by_domain`.

    Args:
        dense: the unpruned model.
        pruned: a model that was cut from it: the same layers and vocabulary.
        blocks: windows of token ids by domain, each ``[windows, T]`` without padding.
        batch_tokens: tokens whose logits are held at once, over both models.
        label: names the work on the progress bar.

    Returns:
        ``dense`` and ``pruned``: each domain's `DomainLoss`. By domain, ``kl``: KL(dense || pruned)
        in nats a token; ``top1_agreement``: share of tokens for which both models find the same
        token likeliest; ``entropy`` of the next token in nats, of ``dense`` and ``pruned``;
        ``repetition`` of both models' greedy text (see `repetition`). ``norms``: for each layer
        the mean over tokens of log(pruned / dense), of the norms of the hidden states that leave
        it. A mean of logarithms, for a few tokens (first ones, mostly) have norms hundreds of
        times the others', and would be all that a root mean square sees.

    Raises:
        InputError: a domain has no windows, or the models' layers or vocabularies differ.
        NonFiniteLossError: the pruned model gives NaN or infinity. Of the dense model that is an
            InputError: no round is to blame.
    """
    _check(dense, pruned, blocks)
    # Half the tokens in a pass: both models' logits are there at once.
    batches = [
        (domain, batch)
        for domain, windows in blocks.items()
        for batch in windows.split(max(1, batch_tokens // 2 // windows.shape[1]))
    ]
    sums = {domain: torch.zeros(len(_SUMS), dtype=torch.float64) for domain in blocks}
    norms = torch.zeros(len(layers_of(dense)), dtype=torch.float64)
    with torch.inference_mode(), _evaluating(dense), _evaluating(pruned):
        for domain, batch in track(batches, label):
            ids = batch.to(device=dense.device, dtype=torch.long)
            before, after = _run(dense, ids), _run(pruned, ids)
            sums[domain] += _sums(before.logits, after.logits, ids).cpu()
            norms += (after.norms - before.norms).sum(dim=1).cpu()
            _check_finite(domain, sums[domain], norms)
        texts = _greedy_texts({"dense": dense, "pruned": pruned}, blocks, batch_tokens, label)
    tokens = {domain: rows.shape[0] * (rows.shape[1] - 1) for domain, rows in blocks.items()}
    means = {
        name: {domain: float(sums[domain][place]) / tokens[domain] for domain in blocks}
        for place, name in enumerate(_SUMS)
    }
    return {
        "dense": _losses(means["dense nll"], tokens),
        "pruned": _losses(means["pruned nll"], tokens),
        "kl": means["kl"],
        "top1_agreement": means["agreed"],
        "entropy": {"dense": means["dense entropy"], "pruned": means["pruned entropy"]},
        "repetition": {
            model: {domain: repetition(text) for domain, text in written.items()}
            for model, written in texts.items()
        },
        "norms": (norms / sum(windows.numel() for windows in blocks.values())).tolist(),
    }


def repetition(ids: list[int]) -> float:
    """Return seq-rep-4: one less the share of different 4-grams among all (arXiv 1908.04319).

    Args:
        ids: a continuation, without its prompt.

    Returns:
        0 when no 4-gram comes twice; near 1 when the text goes round in circles.
    """
    grams = [tuple(ids[start : start + NGRAM]) for start in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def greedy_text(
    model: PreTrainedModel, prompts: Tensor, new_tokens: int, batch_tokens: int
) -> Tensor:
    """Continue prompts of one length with the likeliest token each time.

    The model's own generation settings are left aside: the repetition penalty that some come with
    would hide what is looked for. End-of-text tokens are not taken, so that all texts are as long.

    Args:
        model: a causal language model.
        prompts: token ids ``[prompts, T]``.
        new_tokens: tokens to write.
        batch_tokens: tokens in one batch, prompt and text together.

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
        pad_token_id=0,  # never written: no text ends early
    )
    rows = max(1, batch_tokens // (prompts.shape[1] + new_tokens))
    network.generation_config = settings
    try:
        with torch.inference_mode(), _evaluating(model):
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


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _check(dense: PreTrainedModel, pruned: PreTrainedModel, blocks: Mapping[str, Tensor]) -> None:
    if not blocks:
        raise InputError("there is no validation text to compare the models on: name some domains")
    for domain, windows in blocks.items():
        if windows.ndim != 2 or windows.shape[0] == 0 or windows.shape[1] < 2:
            raise InputError(
                f"domain {domain} has no windows to compare the models on (shape "
                f"{list(windows.shape)}): give it more text"
            )
    networks: tuple[Any, Any] = (dense, pruned)
    sizes = [
        (len(layers_of(model)), model.get_input_embeddings().weight.shape[0]) for model in networks
    ]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the pruned model has {sizes[1][0]} layers and {sizes[1][1]} tokens, and the dense "
            f"model {sizes[0][0]} and {sizes[0][1]}: compare a model with the one it was cut from"
        )


class _Pass(NamedTuple):
    """What a forward pass gave."""

    logits: Tensor  # [n, T, vocabulary]
    norms: Tensor  # [layers, n * T], logarithms of the norms of what leaves each layer


def _run(model: PreTrainedModel, ids: Tensor) -> _Pass:

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
    return _Pass(logits, torch.stack(norms))


def _sums(dense: Tensor, pruned: Tensor, ids: Tensor) -> Tensor:
    """Sums over the predicted tokens of a batch, as `_SUMS` names them, float64."""
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
    """Raise where a sum is not finite; other figures of a model follow from its loss."""
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
    for domain, mean in means.items():
        if mean > 700:  # exp would overflow; a uniform guess over a million words has a mean of 14
            raise NonFiniteLossError(
                f"a model gives no finite perplexity on {domain} (mean loss {mean:.0f}): its "
                "weights are damaged, or it was pruned too far; try a lower ratio"
            )
    return {
        domain: {
            "nll": mean * tokens[domain],
            "tokens": tokens[domain],
            "perplexity": math.exp(mean),
        }
        for domain, mean in means.items()
    }


def _greedy_texts(
    models: Mapping[str, PreTrainedModel],
    blocks: Mapping[str, Tensor],
    batch_tokens: int,
    label: str,
) -> dict[str, dict[str, list[int]]]:
    """What each model makes of the start of every domain's first window."""
    config = next(iter(models.values())).config
    longest = int(getattr(config, "max_position_embeddings", None) or PROMPT_TOKENS + NEW_TOKENS)
    shortest = min(windows.shape[1] for windows in blocks.values())
    length = min(PROMPT_TOKENS, shortest, max(1, longest - NEW_TOKENS))
    prompts = torch.stack([windows[0, :length] for windows in blocks.values()])
    new = min(NEW_TOKENS, longest - length)
    return {
        name: dict(
            zip(blocks, greedy_text(model, prompts, new, batch_tokens).tolist(), strict=True)
        )
        for name, model in track(list(models.items()), f"{label} text")
    }
