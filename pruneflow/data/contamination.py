"""Decontamination: word n-grams that calibration text must not share with evaluation questions."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy

from pruneflow.data.word_hashes import HashedWords, hash_words, ngram_hashes
from pruneflow.questions.question_set import load_questions
from pruneflow.questions.task_files import Question

NGRAM_WORDS = 13
"""Length of the n-grams that a document may not share with a question (as in GPT-3)."""
MIN_NGRAM_WORDS = 6
"""Shorter questions are one n-gram; below this many words they cannot be recognised."""


class Overlap(NamedTuple):
    """An n-gram that a text shares with a question: the question's id, and the words."""

    question: str
    words: str


class Ngrams(NamedTuple):
    """Distinct n-grams of one length.

    Attributes:
        hashes: uint64 of shape [n-grams], ascending.
        questions: index in `QuestionNgrams.questions` of a question with each n-gram, [n-grams].
    """

    hashes: numpy.ndarray
    questions: numpy.ndarray


@dataclass(frozen=True)
class QuestionNgrams:
    """The n-grams of all evaluation questions.

    Attributes:
        by_length: n-grams by number of words: 13, and fewer for shorter questions.
        questions: ids.
        unrecognisable: number of questions below six words even with any of their answers.
    """

    by_length: dict[int, Ngrams]
    questions: list[str]
    unrecognisable: int


def question_ngrams(questions_dir: Path) -> QuestionNgrams:
    """Collect the n-grams of the questions in `questions_dir`.

    Included are the question alone, the question with each of its choices or answers, as running
    text and as a prompt, and the passage it is about. For tasks built into lm-eval every text of
    the row is included, because their prompts rephrase the question. Few-shot examples are not.

    Raises:
        DamagedArtifactError: the folder is missing, or a file does not match the manifest.
    """
    ids: list[str] = []
    hashes: dict[int, list[numpy.ndarray]] = defaultdict(list)
    owners: dict[int, list[numpy.ndarray]] = defaultdict(list)
    unrecognisable = 0
    for asked in load_questions(questions_dir).values():
        for question in asked:
            recognised = False
            for text in _texts(question):
                words = hash_words(text).hashes
                if len(words) < MIN_NGRAM_WORDS:
                    continue
                recognised = True
                length = min(len(words), NGRAM_WORDS)
                of_text = ngram_hashes(words, length)
                hashes[length].append(of_text)
                owners[length].append(numpy.full(len(of_text), len(ids)))
            ids.append(str(question["id"]))
            unrecognisable += not recognised
    by_length = {}
    for length in sorted(hashes, reverse=True):
        distinct, first = numpy.unique(numpy.concatenate(hashes[length]), return_index=True)
        by_length[length] = Ngrams(distinct, numpy.concatenate(owners[length])[first])
    return QuestionNgrams(by_length, ids, unrecognisable)


def find_overlap(text: HashedWords, ngrams: QuestionNgrams) -> Overlap | None:
    """Return the first n-gram that a text shares with a question, or None."""
    for length, (known, owners) in ngrams.by_length.items():
        of_text = ngram_hashes(text.hashes, length)
        positions = numpy.searchsorted(known, of_text)
        positions[positions == len(known)] = 0
        (shared,) = numpy.nonzero(known[positions] == of_text)
        if len(shared):
            start = int(shared[0])
            question = ngrams.questions[owners[positions[start]]]
            return Overlap(question, " ".join(text.words[start : start + length]))
    return None


def _texts(question: Question) -> Iterator[str]:
    """Yield the texts in which a question may appear: as a prompt, and each raw text of its row."""
    prompt = f"{question.get('context', '')} {question['question']}"
    answer = question.get("answer", [])
    answers = question.get("choices") or ([answer] if isinstance(answer, str) else answer)
    if "context" in question:
        yield question["context"]
    for text in dict.fromkeys([prompt, *question.get("texts", [])]):
        yield text
        for choice in answers:
            yield f"{text} {choice}"
            yield f"{text} answer {choice}"
