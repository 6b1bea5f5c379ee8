"""A faster subclass of lm-eval's model: batches by tokens, and each question computed only once.

lm-eval computes a question again for each of its answers, and the logits of all tokens. Here a
question and all its answers are one row of a forward pass: each answer attends to the question and
itself, never to another answer, and has the positions it would have alone. Logits are computed only
where an answer is scored. In float32 the log-likelihoods equal lm-eval's to about 1e-5. In bfloat16
rounding depends on the batch, in lm-eval too; only a budget of one token, which scores requests one
by one like lm-eval with batch size 1, gives identical bits.
"""

import contextlib
from collections import defaultdict
from typing import NamedTuple, TextIO

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
"""Maximum tokens in one forward pass on a CPU; larger passes are 10 to 25 % slower."""
GENERATION = 4
"""Factor for batches in generation, which store fewer logits than a pass over questions."""


class QuestionRow(NamedTuple):
    """Requests with the same context: a question and its answers, scored in one row."""

    context: list[int]
    answers: list[list[int]]
    requests: list[int]  # index of the request of each answer

    @property
    def tokens(self) -> int:
        """Tokens of the row: the last token of an answer is predicted, not an input."""
        return len(self.context) + sum(len(answer) - 1 for answer in self.answers)

    @property
    def longest(self) -> int:
        """Tokens of the question with its longest answer only."""
        return len(self.context) + max(len(answer) for answer in self.answers) - 1


class TokenBudgetLM(HFLM):
    """lm-eval's wrapper of a loaded model, with batches by tokens and little padding.

    Log-likelihoods and generated texts are those of lm-eval (``softmax_dtype=float32``). Questions
    that exceed `batch_tokens`, or the model's `max_row_tokens`, are left to lm-eval, one by one.

    Args:
        model: a causal language model on any device.
        tokenizer: its tokenizer.
        batch_tokens: maximum tokens in one forward pass, padding included; in generation, a
            quarter of the prompts and new tokens of a batch. A longer request is its own batch.
        label: name on the progress bar.
        terminal: stream of the progress bar, because stderr is redirected while lm-eval runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int,
        label: str,
        terminal: TextIO,
    ) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32"
        )
        self._batch_tokens, self._label, self._terminal = batch_tokens, label, terminal

    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Likelihood]:
        _check_lengths(requests, self.max_length)
        on_cpu = self.device.type == "cpu"
        budget = min(self._batch_tokens, CPU_TOKENS) if on_cpu else self._batch_tokens
        limit = max_row_tokens(self.model, self.max_length)

        def fits(question: QuestionRow) -> bool:
            return question.longest <= limit and question.tokens <= self._batch_tokens

        questions = by_context(requests)
        in_rows = [question for question in questions if fits(question)]
        batches = [
            [in_rows[index] for index in batch]
            for batch in batches_by_tokens([question.tokens for question in in_rows], budget)
        ]
        batches += [[question] for question in questions if not fits(question)]
        found: dict[int, Likelihood] = {}
        with contextlib.redirect_stderr(self._terminal):
            for batch in track(batches, self._label):
                if fits(batch[0]):
                    found.update(score_rows(self.model, batch))
                    continue
                self.batch_size_per_gpu = 1  # `generate_until` changes it
                indices = batch[0].requests
                of_question = [requests[index] for index in indices]
                scored = super()._loglikelihood_tokens(of_question, disable_tqdm=True)
                found.update(zip(indices, scored, strict=True))
        return [found[index] for index in range(len(requests))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate in batches of similar lengths.

        Raises:
            InputError: a task's new tokens exceed the model's context.
        """
        lengths = []
        for prompt, options in (request.args for request in requests):
            new = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if new >= self.max_length:
                raise InputError(
                    f"{new} new tokens leave no space for a prompt in the model's "
                    f"{self.max_length}: lower max_gen_toks in the task's file"
                )
            lengths.append(len(self.tok_encode(prompt)) + new)
        batches = batches_by_tokens(lengths, GENERATION * self._batch_tokens)
        texts = [""] * len(requests)
        with contextlib.redirect_stderr(self._terminal):
            for batch in track(batches, f"{self._label}, generated"):
                self.batch_size_per_gpu = len(batch)
                of_batch = [requests[index] for index in batch]
                generated = super().generate_until(of_batch, disable_tqdm=True)
                for index, text in zip(batch, generated, strict=True):
                    texts[index] = text
        return texts


def max_row_tokens(model: PreTrainedModel, max_length: int) -> int:
    """Return up to how many tokens a question's row gives the same result as single requests.

    Beyond a sliding window, a token has other neighbours in a row than alone, and some rotary
    embeddings scale all positions once one exceeds the original training length. 0 if the attention
    implementation does not accept a custom mask.
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


def by_context(requests: list[Request]) -> list[QuestionRow]:
    """Group requests by context, in the order of their first request."""
    indices: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, (_, context, _) in enumerate(requests):
        indices[tuple(context)].append(index)
    return [
        QuestionRow(list(context), [requests[index][2] for index in group], group)
        for context, group in indices.items()
    ]


def score_rows(model: PreTrainedModel, questions: list[QuestionRow]) -> dict[int, Likelihood]:
    """Score all answers of some questions in one forward pass, with one row per question.

    A row is the question followed by each answer without its last token, padded on the right.

    Returns:
        For each request, the natural log-likelihood of its answer from a float32 log-softmax, and
        whether all its tokens have the highest likelihood (greedy).
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
    after_context = 0  # row of `scores` that predicts the first token of each answer
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
    """Attention mask: a token attends to earlier tokens of the question (part 0) and its answer.

    Padding is part 0 and comes last, so no answer attends to it.

    Args:
        parts: part of each token, ``[rows, tokens]``.
        dtype: data type of the model.

    Returns:
        An additive mask, ``[rows, 1, tokens, tokens]``.
    """
    length = parts.shape[1]
    query, key = parts[:, None, :, None], parts[:, None, None, :]
    seen = ((key == 0) | (query == key)) & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def _check_lengths(requests: list[Request], max_length: int) -> None:
    """Check for empty and too long requests, on which lm-eval fails."""
    for (question, text), context, answer in requests:
        if not context or not answer:
            raise InputError(
                f"the tokenizer gives no tokens for {'' if context else 'the question '}"
                f"{(text if context else question)[:40]!r}: remove the question from its task"
            )
        if len(answer) > max_length:
            raise InputError(
                f"an answer has {len(answer)} tokens and the model supports {max_length}: remove "
                f"{text[:40]!r} from its task"
            )


def batches_by_tokens(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Group indices, longest first, so that a padded batch has at most `batch_tokens` tokens.

    A request longer than that is its own batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    free_rows = 0
    for index in order:
        if free_rows == 0:
            batches.append([])
            free_rows = max(1, batch_tokens // max(1, lengths[index]))
        batches[-1].append(index)
        free_rows -= 1
    return batches
