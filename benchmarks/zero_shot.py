"""Zero-shot accuracy on question files: ARC-easy, PIQA and the last word of LAMBADA.

For multiple choice, the answer is the choice with the highest log-likelihood per byte, as in
lm-eval's `acc_bytes`; for LAMBADA, the last word is correct if greedy decoding gives it. The sample
of questions depends only on the seed, so it is the same for every row.
"""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.errors import InputError
from pruneflow.progress import track
from pruneflow.questions.likelihood import QuestionRow, batches_by_tokens, by_context, score_rows

DATA = Path(__file__).parent.parent.parent / "shared/data/zero-shot"
TASKS = ("arc_easy", "piqa", "lambada_openai")


class Item(NamedTuple):
    """A question: its text, the answers to choose from, and the index of the correct one."""

    context: str
    answers: list[str]
    gold: int


def read_items(folder: Path, count: int, seed: int) -> dict[str, list[Item]]:
    """Sample `count` questions of every task, without replacement.

    Raises:
        InputError: a file is missing.
    """
    found = {}
    for task in TASKS:
        path = folder / f"{task}.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}): give its folder with --zero-shot"
            ) from None
        rows = random.Random(seed).sample(lines, min(count, len(lines)))
        found[task] = [_item(json.loads(row)) for row in rows]
    return found


def _item(row: dict[str, Any]) -> Item:
    if "continuation" in row:
        return Item(row["context"].rstrip(), [" " + row["continuation"].strip()], 0)
    answers = [" " + choice for choice in row["choices"]]
    return Item(row["query"].strip() + "\nAnswer:", answers, row["gold"])


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: dict[str, list[Item]],
    batch_tokens: int,
) -> dict[str, list[bool]]:
    """For every task, whether each question was answered correctly."""
    return {
        task: _task(model, tokenizer, asked, batch_tokens, task) for task, asked in items.items()
    }


def _task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: list[Item],
    batch_tokens: int,
    label: str,
) -> list[bool]:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    requests = [
        ((item.context, answer), ids(item.context), ids(answer))
        for item in items
        for answer in item.answers
    ]
    questions: list[QuestionRow] = by_context(requests)
    scores: dict[int, tuple[float, bool]] = {}
    batches = batches_by_tokens([question.tokens for question in questions], batch_tokens)
    for batch in track(batches, label):
        scores |= score_rows(model, [questions[index] for index in batch])
    right, start = [], 0
    for item in items:
        own = [scores[start + index] for index in range(len(item.answers))]
        start += len(own)
        if len(own) == 1:
            right.append(own[0][1])
            continue
        by_byte = [
            value / len(answer.strip().encode())
            for (value, _), answer in zip(own, item.answers, strict=True)
        ]
        right.append(max(range(len(by_byte)), key=by_byte.__getitem__) == item.gold)
    return right
