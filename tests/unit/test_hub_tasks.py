"""lm-eval's own tasks, frozen: from local copies of hub datasets, so that no network is needed."""

import json
import socket
from pathlib import Path

import lm_eval.tasks
import pytest
import yaml
from lm_eval.tasks import TaskManager

from pruneflow.artifacts import write_json
from pruneflow.data.contamination import find_overlap, question_ngrams
from pruneflow.data.word_hashes import hash_words
from pruneflow.errors import InputError
from pruneflow.questions.hub_tasks import SHOT_SEED, freeze_tasks
from pruneflow.questions.question_set import build_questions, load_questions

OWN = Path(lm_eval.tasks.__file__).parent


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    """Some of lm-eval's own tasks; all of them take long to find."""
    folders = ("arc", "gsm8k", "mmlu", "winogrande", "wikitext", "truthfulqa", "commonsense_qa")
    return TaskManager(include_defaults=False, include_path=[OWN / name for name in folders])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("the network cannot be reached")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder where `datasets` finds copies of hub datasets under their ids."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    arc = [
        {
            "id": f"q{number}",
            "question": f"Which of these is the number {number} in the long list of numbers?",
            "choices": {
                "text": [f"it is {number}", f"it is {number + 1}", "none"],
                "label": list("ABC"),
            },
            "answerKey": "AB"[number % 2],
        }
        for number in range(20)
    ]
    arc[7]["choices"] = {"text": ["only one"], "label": ["A"]}
    arc[7]["answerKey"] = "A"
    copy(tmp_path, "allenai/ai2_arc", "ARC-Easy", train=arc[:3], validation=arc[:3], test=arc)
    sums = [
        {
            "question": f"What are {number} and {number + 1}?",
            "answer": f"Add.\n#### {2 * number + 1}",
        }
        for number in range(30)
    ]
    copy(tmp_path, "openai/gsm8k", "main", train=sums[:10], test=sums[10:])
    gap = {"option1": "Ann", "option2": "Bo", "answer": "1", "sentence": "So _ won."}
    copy(tmp_path, "allenai/winogrande", "winogrande_xl", train=[gap], validation=[gap])
    return tmp_path


def copy(root: Path, dataset: str, subset: str, **splits: list[dict]) -> None:
    folder = root / dataset
    folder.mkdir(parents=True)
    files = []
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append({"split": split, "path": f"{split}.jsonl"})
    card = yaml.safe_dump(
        {"license": "mit", "configs": [{"config_name": subset, "data_files": files}]}
    )
    (folder / "README.md").write_text(f"---\n{card}---\n")


def asked_by_lm_eval(manager: TaskManager, name: str) -> dict[int, list[tuple]]:
    """Every request that `lm_eval` itself makes for a task, by row."""
    (task,) = manager.load([name])["tasks"].values()
    task.set_fewshot_seed(SHOT_SEED)
    task.build_all_requests()
    rows: dict[int, list[tuple]] = {}
    for instance in task.instances:
        rows.setdefault(instance.doc_id, []).append(instance.args)
    return rows


def test_frozen_choices_are_what_lm_eval_asks(hub, manager):
    pool = freeze_tasks(["arc_easy"], [], manager)["arc_easy"]
    wanted = asked_by_lm_eval(manager, "arc_easy")
    assert pool.dropped == {"malformed": 1}
    assert len(pool.questions) == 19
    for question in pool.questions:
        row = int(question["id"].rsplit("-", 1)[1])
        delimiter = pool.task.target_delimiter
        asked = [(question["prompt"], f"{delimiter}{choice}") for choice in question["choices"]]
        assert asked == wanted[row]
        assert question["label"] == row % 2
    assert pool.task.metadata.metric == "acc_norm"
    assert pool.task.metadata.chance == pytest.approx(1 / 3)
    assert pool.task.metadata.template == "Question: {{question}}\nAnswer:"
    assert pool.facts == {
        "source": "hub:allenai/ai2_arc/ARC-Easy",
        "split": "test",
        "licence": "LicenseRef-unstated",
    }


def test_frozen_generation_keeps_shots_filters_and_stops(hub, manager):
    pool = freeze_tasks(["gsm8k"], [], manager)["gsm8k"]
    wanted = asked_by_lm_eval(manager, "gsm8k")
    for row, question in enumerate(pool.questions):
        prompt, generation = wanted[row][0]
        assert question["prompt"] == prompt
        assert prompt.count("Question:") == 6
        assert question["answer"] == f"Add.\n#### {2 * (row + 10) + 1}"
        assert pool.task.generation_kwargs is not None
        assert pool.task.generation_kwargs.until == generation["until"]
    (own,) = manager.load(["gsm8k"])["tasks"].values()
    values = pool.task.model_dump(exclude_unset=True, exclude_none=True)
    assert values["filter_list"] == own.config.filter_list
    assert [entry["metric"] for entry in values["metric_list"]] == ["exact_match"]
    assert pool.task.metadata.shots == 5 and pool.task.num_fewshot == 0


@pytest.fixture
def build(hub, manager, monkeypatch):
    """Write ten questions of one task, and all of another, as the stage does."""
    (hub / "lm_eval").mkdir()
    (hub / "lm_eval/sources.yaml").write_text("{}\n")
    write_json(hub / "sources.lock", {"files": {}})
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)
    tasks = {"arc_easy": 10, "gsm8k": None}

    def write(seed: int = 0) -> dict:
        lock, out = hub / "sources.lock", Path("data/questions")
        return build_questions(tasks, seed, hub / "lm_eval", lock, out)

    return write


@pytest.mark.slow
def test_the_stage_writes_a_drawn_sample_that_lm_eval_runs_again(build, manager):
    manifest = build(0)
    assert manifest["tasks"]["arc_easy"]["questions"] == 10
    assert manifest["tasks"]["arc_easy"]["usable"] == 19
    assert manifest["tasks"]["gsm8k"]["questions"] == 20
    drawn = load_questions(Path("data/questions"))["arc_easy"]
    loaded = TaskManager(include_defaults=False, include_path="data/questions").load(["arc_easy"])
    task = loaded["tasks"]["arc_easy"]
    task.build_all_requests()
    wanted = asked_by_lm_eval(manager, "arc_easy")
    rows = [int(question["id"].rsplit("-", 1)[1]) for question in drawn]
    assert [instance.args for instance in task.instances] == [
        args for row in rows for args in wanted[row]
    ]
    assert build(0)["digest"] == manifest["digest"] != build(1)["digest"]


@pytest.mark.slow
def test_calibration_text_that_holds_a_frozen_question_is_recognised(build):
    build()
    sequences = question_ngrams(Path("data/questions"))
    row = int(load_questions(Path("data/questions"))["arc_easy"][0]["id"].rsplit("-", 1)[1])
    pasted = f"Somebody asked which of these is the number {row} in the long list of numbers, why."
    assert find_overlap(hash_words(pasted), sequences) is not None
    # Short, and without the words that the prompt puts around it.
    shared = find_overlap(hash_words("So, what are 15 and 16? Add. 31, that is."), sequences)
    assert shared is not None and shared.question == "gsm8k-000005"
    # A worked example is no question.
    assert find_overlap(hash_words("So, what are 3 and 4? Add. 7, that is."), sequences) is None


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("ai2_arc", r"ai2_arc is a group of lm-eval tasks: .*\(arc_challenge, arc_easy\)"),
        ("mmlu", r"mmlu is a group .*mmlu_abstract_algebra.* and 37 more\)"),
        ("winogrande", "has a prompt for each choice"),
        ("wikitext", "output type loglikelihood_rolling: choose one with generate_until or mul"),
        ("truthfulqa_mc2", "scores answers with Python code"),
        (
            "nonsense",
            r"nonsense has no file in configs/lm_eval \(known: piqa\) and is not",
        ),
        (
            "commonsense_qa",
            "task commonsense_qa cannot be read .*: run where the hub can be reached",
        ),
    ],
)
def test_what_cannot_be_frozen_is_one_line(hub, manager, task, message):
    with pytest.raises(InputError, match=message) as error:
        freeze_tasks([task], ["piqa"], manager)
    assert "\n" not in str(error.value)


def test_a_metric_whose_code_is_on_the_hub_is_refused_unread(hub, tmp_path):
    (tmp_path / "own").mkdir()
    text = (OWN / "arc/arc_easy.yaml").read_text()
    metrics = {"one": "metric: acc\n    hf_evaluate: true\n", "two": "metric: nonsense\n"}
    for name, metric in metrics.items():
        changed = text.replace("task: arc_easy", f"task: {name}").replace("metric: acc\n", metric)
        (tmp_path / f"own/{name}.yaml").write_text(changed)
    manager = TaskManager(include_defaults=False, include_path=tmp_path / "own")
    for name in metrics:
        with pytest.raises(InputError, match="whose code is fetched from the hub"):
            freeze_tasks([name], [], manager)
