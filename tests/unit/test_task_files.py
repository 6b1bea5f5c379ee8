"""Task files: what is refused, and what is left as lm-eval has it."""

from pathlib import Path

import pytest
import yaml

from pruneflow.errors import InputError
from pruneflow.questions.task_files import read_task, task_text

LM_EVAL = Path("configs/lm_eval")
TASKS = sorted(path.stem for path in LM_EVAL.glob("*.yaml") if path.stem != "sources")


def changed(folder: Path, task: str, old: str, new: str) -> Path:
    text = (LM_EVAL / f"{task}.yaml").read_text()
    assert old in text
    (folder / f"{task}.yaml").write_text(text.replace(old, new))
    return folder / f"{task}.yaml"


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_tasks_are_read_and_written_without_a_loss(task, tmp_path):
    text = task_text(read_task(LM_EVAL / f"{task}.yaml"), "data/questions/x.jsonl", "a file")
    own = yaml.safe_load((LM_EVAL / f"{task}.yaml").read_text())
    assert yaml.safe_load(text) == {
        **own,
        "dataset_kwargs": {"data_files": {"test": "data/questions/x.jsonl"}},
    }
    (tmp_path / f"{task}.yaml").write_text(text)
    written = read_task(tmp_path / f"{task}.yaml")
    again = task_text(written, "data/questions/x.jsonl", "a file")
    assert yaml.safe_load(again) == yaml.safe_load(text)


def test_the_fields_of_a_question_are_those_of_the_templates():
    assert read_task(LM_EVAL / "piqa.yaml").question_fields == {"question", "choices", "label"}
    assert read_task(LM_EVAL / "openbookqa.yaml").question_fields >= {"question"}
    assert read_task(LM_EVAL / "boolq.yaml").question_fields >= {"context", "question"}
    asdiv = read_task(LM_EVAL / "asdiv.yaml")
    assert asdiv.question_fields == {"context", "question", "answer"}


@pytest.mark.parametrize(
    ("task", "change", "problem"),
    [
        ("siqa", {}, None),
        ("siqa", {"context": None}, "context is missing or empty"),
        ("siqa", {"question": " "}, "question is missing or empty"),
        ("siqa", {"choices": ["a"]}, "choices must be a list of two or more texts"),
        ("siqa", {"choices": ["a", ""]}, "a choice is empty"),
        ("siqa", {"label": 3}, "label is 3, and must be the index of a choice"),
        ("siqa", {"label": "1"}, "label is '1', and must be the index of a choice"),
        ("siqa", {"label": True}, "label is True, and must be the index of a choice"),
        ("asdiv", {"answer": ["1", "2"]}, None),
        ("asdiv", {"answer": ""}, "answer is missing or empty"),
        ("asdiv", {"answer": []}, "answer is missing or empty"),
    ],
)
def test_a_question_that_does_not_fit_its_task_is_described(task, change, problem):
    question = {"context": "a", "question": "b", "choices": ["c", "d", "e"], "label": 0}
    assert read_task(LM_EVAL / f"{task}.yaml").problem({**question, **change}) == problem


@pytest.mark.parametrize(
    ("task", "old", "new", "message"),
    [
        ("piqa", "dataset_path: json", "dataset_path: baber/piqa", "dataset_path is 'baber/piqa'"),
        ("piqa", "task: piqa", "task: other", "task is 'other' and must be 'piqa'"),
        ("piqa", "metric: acc_norm\n  chance", "metric: f1\n  chance", "metadata.metric is 'f1'"),
        ("piqa", "chance: 0.5", "chance: 1.5", "metadata.chance is 1.5"),
        ("piqa", "chance: 0.5", "chance: 0.5\n  shots_: 1", "unknown key metadata.shots_"),
        ("piqa", "num_fewshot: 0", "fewshots: 0", "unknown key fewshots"),
        ("piqa", "- metric: acc_norm", "- metric: acc", "metric_list has no acc_norm, which"),
        ("piqa", "- metric: acc_norm", "- metric: mine", "metric_list.1.metric is 'mine'"),
        ("piqa", "true\n  - metric: acc_norm", "true\n    hf_evaluate: true\n  - metric: acc_norm",
         "unknown key metric_list.0.hf_evaluate"),
        ("piqa", "metric: acc_norm\n  chance", "metric: exact_match\n  chance",
         "output_type multiple_choice use acc or acc_norm"),
        ("piqa", "doc_to_choice: \"{{choices}}\"\n", "", "doc_to_choice is missing"),
        ("piqa", "doc_to_choice: \"{{choices}}\"", "doc_to_choice: !function a.b", "valid YAML"),
        ("piqa", "num_fewshot: 0", "num_fewshot: 2", "num_fewshot is 2 and fewshot_config has 0"),
        ("piqa", "{{question}}", "{{question", "doc_to_text is not a valid template"),
        ("asdiv", "num_fewshot: 4", "num_fewshot: 0", "num_fewshot is 0 and fewshot_config has 4"),
        ("asdiv", "num_fewshot: 4", "num_fewshot: 5", "num_fewshot is 5 and fewshot_config has 4"),
        ("asdiv", "do_sample: false", "do_sample: true", "generation_kwargs.do_sample is True"),
        ("asdiv", "sampler: first_n", "sampler: default", "fewshot_config.sampler is 'default'"),
        ("asdiv", "output_type: generate_until", "output_type: loglikelihood", "output_type is"),
        ("asdiv", "-?[0-9][0-9,]*", "*", "is not a regular expression"),
        ("asdiv", "function: take_first", "function: custom", "function is 'custom'"),
        ("asdiv", "metric: exact_match\n  chance", "metric: acc\n  chance",
         "output_type generate_until use exact_match"),
    ],
)  # fmt: skip
def test_a_task_file_that_would_not_do_what_is_meant_is_refused(tmp_path, task, old, new, message):
    path = changed(tmp_path, task, old, new)
    with pytest.raises(InputError, match=message.replace(".", r"\.")) as error:
        read_task(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_task_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"arc\.yaml is missing"):
        read_task(tmp_path / "arc.yaml")
