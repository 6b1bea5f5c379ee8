"""lm-eval's own model class, faster: batches by tokens, and a question's text computed once.

lm-eval computes a question again for each of its answers, and logits for every token of both. Here
a question and all its answers are one row of one forward pass: each answer sees the question and
itself, never another answer, and takes the positions it would have alone. Logits are computed only
where an answer is read off. In float32 the log-likelihoods are lm-eval's to about 1e-5. In bfloat16
any other arrangement of the same tokens rounds otherwise, lm-eval's own batch sizes included: only
a budget of one token, which asks one by one as lm-eval does with batch size 1, repeats that to
the last bit.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.errors import InputError
from pruneflow.progress import track

Request = tuple[tuple[str, str], list[int], list[int]]
Likelihood = tuple[float, bool]

CPU_TOKENS = 512
"""Most tokens in one pass over questions on a CPU, where larger ones are 10 to 25 % slower."""
GENERATION = 4
"""Tokens of a generating batch for each in a pass over questions, which keeps logits of most."""


class Question(NamedTuple):
    """Requests that share a context: a question, and the answers to choose from."""

    context: list[int]
    answers: list[list[int]]
    requests: list[int]  # where each answer stands among the requests

    @property
    def tokens(self) -> int:
        """Tokens of its row: the last token of an answer is predicted, and never read."""
        return len(self.context) + sum(len(answer) - 1 for answer in self.answers)

    @property
    def reach(self) -> int:
        """Tokens that the longest answer and its question have when computed alone."""
        return len(self.context) + max(len(answer) for answer in self.answers) - 1


def language_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_tokens: int,
    label: str,
    terminal: TextIO,
) -> HFLM:
    """Return lm-eval's wrapper of a loaded model, which computes batches by tokens.

    Log-likelihoods and generated texts are lm-eval's (``softmax_dtype=float32``). What does not fit
    in a row of its own within `batch_tokens`, or reaches beyond where the model's positions are
    plain (see `plain_reach`), lm-eval computes itself.

    Args:
        model: a causal language model on any device.
        tokenizer: its tokenizer.
        batch_tokens: tokens in one forward pass, at most, padding included; when it generates, a
            quarter of a batch's prompts and new tokens. What is longer is a batch of its own.
        label: names the work on the progress bar.
        terminal: where that bar goes, for standard error is silent while lm-eval works.
    """

    class TokenBudgetLM(HFLM):
        """Sorts requests by length, so that hardly any padding is computed."""

        def _loglikelihood_tokens(
            self,
            requests: list[Request],
            disable_tqdm: bool = False,
            override_bs: int | None = None,
        ) -> list[Likelihood]:
            _check_lengths(requests, self.max_length)
            on_cpu = self.device.type == "cpu"
            budget = min(batch_tokens, CPU_TOKENS) if on_cpu else batch_tokens
            reach = plain_reach(self.model, self.max_length)
            together: list[Question] = []
            alone: list[Question] = []
            for question in by_context(requests):
                fits = question.reach <= reach and question.tokens <= batch_tokens
                (together if fits else alone).append(question)
            found: dict[int, Likelihood] = {}

            def share(questions: list[Question]) -> None:
                found.update(score_rows(self.model, questions))

            def leave_to_lm_eval(passes: list[list[int]]) -> None:
                chosen = [index for one in passes for index in one]
                self.batch_size_per_gpu = len(passes)
                scored = super(TokenBudgetLM, self)._loglikelihood_tokens(
                    [requests[index] for index in chosen], disable_tqdm=True
                )
                found.update(zip(chosen, scored, strict=True))

            work: list[tuple[Callable[[Any], None], list[Any]]] = [
                (share, [together[index] for index in batch])
                for batch in batches_by_tokens([one.tokens for one in together], budget)
            ]
            # Never in one batch: a row that is too long would stretch the others' positions.
            for passes in _single_passes(requests, alone, reach):
                lengths = [_length(requests[first]) for first, *_ in passes]
                work += [
                    (leave_to_lm_eval, [passes[index] for index in batch])
                    for batch in batches_by_tokens(lengths, budget)
                ]
            with contextlib.redirect_stderr(terminal):
                for compute, batch in track(work, label):
                    compute(batch)
            return [found[index] for index in range(len(requests))]

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            lengths = []
            for prompt, options in (request.args for request in requests):
                new = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
                if new >= self.max_length:
                    raise InputError(
                        f"{new} new tokens leave no room for a prompt in the model's "
                        f"{self.max_length}: lower max_gen_toks in the task's file"
                    )
                lengths.append(len(self.tok_encode(prompt)) + new)
            batches = batches_by_tokens(lengths, GENERATION * batch_tokens)
            texts = [""] * len(requests)
            with contextlib.redirect_stderr(terminal):
                for batch in track(batches, f"{label}, written"):
                    self.batch_size_per_gpu = len(batch)
                    chosen = [requests[index] for index in batch]
                    written = super().generate_until(chosen, disable_tqdm=True)
                    for index, text in zip(batch, written, strict=True):
                        texts[index] = text
            return texts

    return TokenBudgetLM(
        pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32"
    )


def plain_reach(model: PreTrainedModel, max_length: int) -> int:
    """Return up to how many tokens a row of a question and its answers equals them one by one.

    Beyond a sliding window, a token's neighbours in the row are no longer those it has alone; and
    some rotary embeddings stretch all positions as soon as one lies beyond the length the model was
    first trained on. 0 for attention that takes no mask of its own.
    """
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return 0
    rope = getattr(model.config, "rope_parameters", None) or {}
    limits = [
        getattr(model.config, "sliding_window", None),
        getattr(model.config, "original_max_position_embeddings", None),
        rope.get("original_max_position_embeddings"),
    ]
    return min([max_length, *(limit for limit in limits if limit)])


def by_context(requests: list[Request]) -> list[Question]:
    """Put requests with the same context together, in the order of their first."""
    indices: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (_, context, _) in enumerate(requests):
        indices[tuple(context)].append(index)
    return [
        Question(list(context), [requests[index][2] for index in group], group)
        for context, group in indices.items()
    ]


def score_rows(model: PreTrainedModel, questions: list[Question]) -> dict[int, Likelihood]:
    """Score all answers of some questions in one forward pass, one row a question.

    A row is the question, then each answer without its last token, padded on the right.

    Returns:
        For each request the natural log-likelihood of its answer, from a float32 log-softmax, and
        whether each of its tokens is the likeliest.
    """
    shape = (len(questions), max(question.tokens for question in questions))
    ids, positions, parts = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    keep = torch.zeros(shape, dtype=torch.bool)  # positions whose logits are needed
    for row, question in enumerate(questions):
        end = len(question.context)
        ids[row, :end] = torch.tensor(question.context)
        positions[row, :end] = torch.arange(end)
        keep[row, end - 1 : question.tokens] = True
        for part, answer in enumerate(question.answers, start=1):
            start, end = end, end + len(answer) - 1
            ids[row, start:end] = torch.tensor(answer[:-1], dtype=torch.long)
            positions[row, start:end] = len(question.context) + torch.arange(end - start)
            parts[row, start:end] = part
    device = model.device
    with torch.no_grad():
        logits = model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=_mask(parts, model.dtype).to(device),
            logits_to_keep=keep.to(device),
            use_cache=False,
        ).logits
        scores = logits.log_softmax(-1, dtype=torch.float32)
        likeliest = scores.argmax(-1)
    found: dict[int, Likelihood] = {}
    after_context = 0  # row of `scores` that predicts the first token of every answer
    for question in questions:
        following = after_context + 1
        for request, answer in zip(question.requests, question.answers, strict=True):
            end = following + len(answer) - 1
            rows = torch.tensor([after_context, *range(following, end)], device=device)
            tokens = torch.tensor(answer, device=device)
            found[request] = (
                float(scores[rows, tokens].sum()),
                bool((likeliest[rows] == tokens).all()),
            )
            following = end
        after_context = following
    return found


def _mask(parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Let a token see what stands before it in its question (part 0) and in its own answer.

    Padding counts as part 0: it stands last, so that no answer sees it.

    Args:
        parts: part of each token, ``[rows, tokens]``.
        dtype: of the mask, the model's own.

    Returns:
        What is added to attention scores, ``[rows, 1, tokens, tokens]``.
    """
    length = parts.shape[1]
    reader, read = parts[:, None, :, None], parts[:, None, None, :]
    seen = ((read == 0) | (reader == read)) & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def _length(request: Request) -> int:
    """Tokens that a request has when computed alone."""
    _, context, answer = request
    return len(context) + len(answer) - 1


def _single_passes(
    requests: list[Request], questions: list[Question], reach: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Requests that lm-eval itself computes as one row: they differ in the last token at most.

    Returns:
        Those up to `reach` tokens, and the longer ones.
    """
    rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for question in questions:
        for index in question.requests:
            _, context, answer = requests[index]
            rows[(*context, *answer[:-1])].append(index)
    near = [group for tokens, group in rows.items() if len(tokens) <= reach]
    far = [group for tokens, group in rows.items() if len(tokens) > reach]
    return near, far


def _check_lengths(requests: list[Request], max_length: int) -> None:
    """Refuse what lm-eval would stumble over."""
    for (question, text), context, answer in requests:
        if not context or not answer:
            raise InputError(
                f"the tokenizer leaves nothing of {'' if context else 'the question '}"
                f"{(text if context else question)[:40]!r}: take the question out of its task"
            )
        if len(answer) > max_length:
            raise InputError(
                f"an answer has {len(answer)} tokens and the model reads {max_length}: take "
                f"{text[:40]!r} out of its task"
            )


def batches_by_tokens(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Group indices, longest first, so that rows times the longest row is at most `batch_tokens`.

    A request longer than the budget is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if room == 0:
            batches.append([])
            room = max(1, batch_tokens // max(1, lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches
