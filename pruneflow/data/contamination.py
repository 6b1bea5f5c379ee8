"""Contamination: what calibration text must not share with the questions a model is asked."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy

from pruneflow.data.word_hashes import sequence_hashes, word_hashes, words
from pruneflow.questions.question_set import load_questions
from pruneflow.questions.task_files import Question

SEQUENCE_WORDS = 13
"""Words in a row that a document may not share with a question (as GPT-3's overlap test)."""
SHORTEST = 6
"""Words from which on a question that is shorter than that is recognised as a whole."""


class Overlap(NamedTuple):
    """What a text shares with a question: the question's id, and the words in a row."""

    question: str
    words: str


class Runs(NamedTuple):
    """Runs of one length.

    Attributes:
        hashes: of the runs, uint64 of shape [runs], rising, each once.
        owners: the position in `Sequences.questions` of the first question with a run, [runs].
    """

    hashes: numpy.ndarray
    owners: numpy.ndarray


@dataclass(frozen=True)
class Sequences:
    """Every run of words that gives a question away.

    Attributes:
        runs: by length in words: every run of 13, and shorter questions whole.
        questions: ids.
        unrecognisable: how many questions are under six words even with any of their answers.
    """

    runs: dict[int, Runs]
    questions: list[str]
    unrecognisable: int


def question_sequences(questions_dir: Path) -> Sequences:
    """Return what gives away the questions in `questions_dir`.

    A question counts alone, and with each of its choices or its answer, as a text would tell it
    and as a prompt asks it; the passage that it is about counts too. Of lm-eval's own tasks every
    text of the row does, for the prompt frames the question in other words. Worked examples do
    not: nobody is asked them.

    Raises:
        DamagedArtifactError: the folder is missing, or a file is not its manifest's.
    """
    ids: list[str] = []
    found: dict[int, list[numpy.ndarray]] = defaultdict(list)
    owners: dict[int, list[numpy.ndarray]] = defaultdict(list)
    unrecognisable = 0
    for asked in load_questions(questions_dir).values():
        for question in asked:
            recognised = False
            for form in _forms(question):
                said = words(form)
                if len(said) < SHORTEST:
                    continue
                recognised = True
                length = min(len(said), SEQUENCE_WORDS)
                hashes = sequence_hashes(word_hashes(said), length)
                found[length].append(hashes)
                owners[length].append(numpy.full(len(hashes), len(ids)))
            ids.append(str(question["id"]))
            unrecognisable += not recognised
    runs = {}
    for length in sorted(found, reverse=True):
        hashes, first = numpy.unique(numpy.concatenate(found[length]), return_index=True)
        runs[length] = Runs(hashes, numpy.concatenate(owners[length])[first])
    return Sequences(runs, ids, unrecognisable)


def shared_sequence(text: str, sequences: Sequences) -> Overlap | None:
    """Return the first run of words of `text` that gives a question away, or None.

    Case and punctuation do not count.
    """
    found = words(text)
    return shared_run(found, word_hashes(found), sequences)


def shared_run(found: list[str], hashes: numpy.ndarray, sequences: Sequences) -> Overlap | None:
    """Do what `shared_sequence` does, for words and their hashes (`sequences.word_hashes`)."""
    for length, (known, owners) in sequences.runs.items():
        runs = sequence_hashes(hashes, length)
        places = numpy.searchsorted(known, runs)
        places[places == len(known)] = 0
        (shared,) = numpy.nonzero(known[places] == runs)
        if len(shared):
            start = int(shared[0])
            question = sequences.questions[owners[places[start]]]
            return Overlap(question, " ".join(found[start : start + length]))
    return None


def _forms(question: Question) -> Iterator[str]:
    """Yield what a text that holds the question would say: as it was asked, and each raw text."""
    asked = f"{question.get('context', '')} {question['question']}"
    answer = question.get("answer", [])
    answers = question.get("choices") or ([answer] if isinstance(answer, str) else answer)
    if "context" in question:
        yield question["context"]
    for told in dict.fromkeys([asked, *question.get("texts", [])]):
        yield told
        for choice in answers:
            yield f"{told} {choice}"
            yield f"{told} answer {choice}"
