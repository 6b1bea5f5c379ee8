"""A model directory without this project: it reloads, lm-eval runs on it, and what slows it."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from pruneflow import stages
from pruneflow.artifacts import write_manifest
from pruneflow.errors import DamagedArtifactError
from pruneflow.measure import deployment, latency, reload
from pruneflow.measure.latency_record import Deployment, LmEvalAnswers
from pruneflow.models.export import rebuild, save
from pruneflow.models.round_record import RECORD
from pruneflow.models.structure import layers_of
from pruneflow.models.surgery import cut_neurons
from pruneflow.settings.pipeline import ComputeSettings, EvaluationSettings, LatencySettings
from tests.pretend_devices import PretendDevices
from tests.unit.report_example import LATENCY

MEASURED = {key: value for key, value in LATENCY.items() if key != "lm_eval"}
QUESTIONS = [
    {
        "question": f"What comes after {word}?",
        "choices": ["one", "two more", "none"],
        "label": label,
    }
    for word in ("zero", "a", "seven", "the first")
    for label in (0, 1)
]
TASK = {
    "task": "counting",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/questions/counting.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "num_fewshot": 0,
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0, "metric": "acc"},
}


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_model_directory):
    """A project folder with a tiny model in data/model and one task in data/questions."""
    (tmp_path / "data/questions").mkdir(parents=True)
    tiny_model_directory.rename(tmp_path / "data/model")
    (tmp_path / "data/questions/counting.yaml").write_text(yaml.safe_dump(TASK))
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (tmp_path / "data/questions/counting.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def ask(project, count=6, fits=True):
    paths = (project / "model", project / "questions")
    model, questions = (path.relative_to(project.parent) for path in paths)
    how = "float32", "cpu", fits
    return deployment.lm_eval_command(model, questions, "counting", count, *how)


def change(directory, edit):
    """Change the tensors of a model directory."""
    weights = load_file(directory / "model.safetensors")
    edit(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_complete_model_reloads_and_writes(tiny_model_directory):
    result = reload.reload(str(tiny_model_directory), "float32", 5, "cpu")
    assert result["problems"] == []
    assert len(result["ids"]) == 5
    assert list(result["answers"]) == list(reload.PROMPTS)
    assert result["memory"]["peak"] >= result["memory"]["before"] > 0
    assert result["memory"]["device_peak"] is None
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory, dtype=torch.float32)
    with torch.no_grad():
        first = model(torch.tensor([result["prompt_ids"]])).logits[0, -1].argmax()
    assert result["ids"][0] == first


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried", "CUDA error: out of memory"])
def test_a_gpu_that_is_too_small_is_no_failure_to_reload(
    tiny_model_directory, monkeypatch, message
):
    def full(_model, _device):
        raise RuntimeError(said[-1])

    said = [message]

    monkeypatch.setattr(LlamaForCausalLM, "to", full)
    with PretendDevices():
        result = reload.reload(str(tiny_model_directory), "float32", 2, "cuda")
    assert result["memory"]["device_peak"] is None
    assert len(result["ids"]) == 2
    said.append("CUDA error: an illegal memory access was encountered")
    with PretendDevices(), pytest.raises(RuntimeError, match="illegal"):
        reload.reload(str(tiny_model_directory), "float32", 2, "cuda")


def test_a_left_over_tensor_is_a_problem(tiny_model_directory):
    name = "model.layers.0.mlp.extra_proj.weight"
    change(tiny_model_directory, lambda weights: weights.update({name: torch.zeros(2, 2)}))
    problems = reload.reload(str(tiny_model_directory), "float32", 2, "cpu")["problems"]
    assert problems == [f"unexpected keys: {name}"]


@pytest.mark.slow
def test_the_fresh_process_fails_on_a_missing_tensor(tiny_model_directory):
    name = "model.layers.1.mlp.up_proj.weight"
    change(tiny_model_directory, lambda weights: weights.pop(name))
    result = deployment.reload_isolated(tiny_model_directory, "float32", "cpu")
    assert result.problems == [f"missing keys: {name}"]


def test_a_process_that_dies_gives_its_last_line_as_reason(tmp_path):
    result = deployment.reload_isolated(tmp_path / "nothing", "float32", "cpu")
    (problem,) = result.problems
    assert "\n" not in problem
    assert result.memory is None


def attempts(forbid):
    """Code that forbids the project's modules and prints which of them it can import even so."""
    return (
        f"import json, runpy, sys\n{forbid}\nfound = []\n"
        "for name in ('pruneflow', 'pruneflow.models.loading', 'flows', 'tasks'):\n"
        "    try:\n        __import__(name)\n        found.append(name)\n"
        "    except ImportError:\n        pass\n"
        "print(json.dumps(found))\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "forbid",
    [
        # Without arguments it ends with an IndexError, once it has forbidden the project.
        f"try:\n    runpy.run_path({str(deployment.RELOAD)!r}, run_name='__main__')\n"
        "except IndexError:\n    pass",
        deployment.LM_EVAL.partition("; runpy")[0],
    ],
    ids=["reload", "lm_eval"],
)
def test_the_fresh_process_cannot_import_this_project(forbid):
    assert "pruneflow" in json.loads(deployment.run_isolated("-c", attempts("")).stdout)
    result = deployment.run_isolated("-c", attempts(forbid))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_the_fresh_process_sees_the_linked_folders_and_no_token(project, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    code = "import os; print(os.listdir(), os.listdir('data'), os.environ.get('HF_TOKEN'))"
    model = (project / "model").relative_to(project.parent)
    result = deployment.run_isolated("-c", code, links=[model])
    assert result.stdout.strip() == "['data'] ['model'] None"
    assert (project / "model/config.json").is_file()  # removing the folder follows no link


def test_peak_memory_is_the_childs_own():
    """A child's ru_maxrss starts at what its parent held; ours must not."""
    ballast = torch.ones(100_000_000 // 4)
    result = deployment.run_isolated(
        "-c",
        "import runpy\n"
        f"print(runpy.run_path({str(deployment.RELOAD)!r}, run_name='reload')['peak_memory']())",
    )
    assert int(result.stdout) < 60_000_000 < ballast.numel() * 4


def test_a_command_that_takes_too_long_is_a_failure_with_its_reason(project, monkeypatch):
    monkeypatch.setattr(deployment, "TIMEOUT", 0.3)
    result = ask(project)
    assert not result.ok
    assert result.reason == "no answer within 0.3 seconds"
    assert result.accuracy is result.correct is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "Killed"),
        ("raise ValueError('no such dtype')", "ValueError: no such dtype"),
        ("raise SystemExit(3)", "exit code 3"),
        ("pass", "cannot be read"),  # it ended well and wrote nothing
    ],
)
def test_a_command_that_fails_is_no_crash(project, monkeypatch, code, reason):
    monkeypatch.setattr(deployment, "LM_EVAL", code)
    result = ask(project)
    assert not result.ok
    assert reason in result.reason
    assert "\n" not in result.reason


def written(directory, scores, output_type="multiple_choice"):
    """Results and answers as lm-eval writes them, questions out of order and two filters."""
    folder = directory / "data__model"
    folder.mkdir()
    config = {"output_type": output_type, "metadata": {"metric": "acc"}}
    results = {"configs": {"t": config}, "results": {"t": {"acc,none": 0.5, "acc,last": 0.0}}}
    (folder / "results_2026.json").write_text(json.dumps(results))
    rows = [
        {"doc_id": 1 - row, "filter": name, "filtered_resps": [[score, "False"]], "acc": good}
        for name, good in (("none", 1.0), ("last", 0.0))
        for row, (score, good) in enumerate(((scores[0], good), (scores[1], 0.0)))
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "samples_t_2026.jsonl").write_text(text, encoding="utf-8")
    return deployment._read_answers(directory, "t")


def test_answers_are_read_in_the_order_of_the_file(tmp_path):
    answers = written(tmp_path, ["-3.5", "-4"])
    assert answers == {
        "questions": 2,
        "metric": "acc",
        "accuracy": 0.5,
        "correct": [0, 1],
        "reason": None,
    }


@pytest.mark.parametrize("score", ["nan", "-inf"])
def test_a_likelihood_that_is_not_finite_is_a_problem(tmp_path, score):
    assert "no finite likelihood on question 1 of t" in written(tmp_path, ["-3", score])["reason"]


def test_the_lm_eval_task_is_the_first_with_choices(tmp_path):
    for name, kind in (("asdiv", "generate_until"), ("piqa", "multiple_choice")):
        (tmp_path / f"{name}.yaml").write_text(f"output_type: {kind}\n")
    assert deployment.lm_eval_task(["asdiv", "piqa"], tmp_path) == "piqa"
    assert deployment.lm_eval_task(["asdiv"], tmp_path) == "asdiv"
    with pytest.raises(DamagedArtifactError, match=r"boolq\.yaml is missing: run `dvc repro"):
        deployment.lm_eval_task(["boolq", "piqa"], tmp_path)


def test_the_stage_asks_the_first_task_with_choices_and_keeps_the_answer(project, monkeypatch):
    write_manifest(project / "questions")
    asked = []
    placement = {"dense": "spread", "pruned": "whole"}

    def measure(*_):
        return Deployment.model_validate({**MEASURED, "placement": placement})

    monkeypatch.setattr(latency, "measure_latency", measure)

    def command(*given, fits):
        asked.append((*given, fits))
        return LmEvalAnswers.model_validate(LATENCY["lm_eval"])

    monkeypatch.setattr(deployment, "lm_eval_command", command)
    settings = SimpleNamespace(
        evaluation=EvaluationSettings(tasks={"counting": None}),
        latency=LatencySettings(lm_eval_questions=7),
        compute=ComputeSettings(device="cpu", dtype="float32"),
    )
    stages.latency(settings)
    report = json.loads((project / "reports/latency.json").read_text())
    assert report == {**LATENCY, "placement": placement, "schema_version": 1}
    folders = (Path("data/model"), Path("data/questions"))
    assert asked == [(*folders, "counting", 7, "float32", "cpu", True)]
    placement["pruned"] = "streamed"
    stages.latency(settings)
    assert asked[1][-1] is False
    (project / "questions/counting.yaml").write_text("task: another\n")
    with pytest.raises(DamagedArtifactError, match=r"counting\.yaml is damaged"):
        stages.latency(settings)


def test_disk_usage_names_every_file_but_the_record(tiny_model_directory):
    (tiny_model_directory / RECORD).write_text("{}")
    usage = deployment.disk_usage(tiny_model_directory)
    assert RECORD not in usage.files
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(usage.files)
    assert usage.weights == (tiny_model_directory / "model.safetensors").stat().st_size
    assert usage.total == sum(usage.files.values()) > usage.weights


def test_widths_that_fit_are_not_warned_of(tiny_model):
    assert deployment.slow_widths(tiny_model(), 8) == []  # 40 neurons, 6 heads of 4


def test_each_kind_of_slow_width_is_one_sentence(tiny_model):
    model = tiny_model()
    for layer, neurons in zip(layers_of(model), (32, 24, 7), strict=True):
        cut_neurons(layer, torch.arange(neurons))
    (mlp,) = deployment.slow_widths(model, 8)
    assert mlp == (
        "MLP width 7 in 1 of 3 layers is no multiple of 8, which GPUs run several times "
        "slower: set pruning.neuron_multiple to 8"
    )
    mlp, attention = deployment.slow_widths(model, 16)
    assert mlp.startswith("MLP width 7, 24 in 2 of 3 layers is no multiple of 16")
    assert attention.startswith("attention width (heads of 4 channels) 24 in 3 of 3 layers is no")
    assert "run a little slower: leave heads and kv_groups out" in attention


def by_hand(directory):
    """Whether the first choice is the likeliest, from the model's own log-probabilities."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    correct = []
    for question in QUESTIONS:
        context = f"Question: {question['question']}\nAnswer:"
        start = len(tokenizer(context)["input_ids"])
        scores = []
        for choice in question["choices"]:
            ids = torch.tensor(tokenizer(f"{context} {choice}")["input_ids"])
            with torch.no_grad():
                logs = model(ids[None]).logits[0].log_softmax(dim=-1)
            scores.append(float(logs[torch.arange(start - 1, len(ids) - 1), ids[start:]].sum()))
        correct.append(int(scores.index(max(scores)) == question["label"]))
    return correct


@pytest.mark.slow
@pytest.mark.parametrize("fits", [True, False])
def test_lm_evals_command_answers_as_the_model_does(project, fits):
    result = ask(project, fits=fits)
    assert result.ok, result.reason
    assert result.correct == by_hand(project / "model")[:6]
    assert set(result.correct) == {0, 1}  # else the order would not matter
    assert result.accuracy == sum(result.correct) / result.questions
    assert (result.metric, result.questions) == ("acc", 6)
    words = shlex.split(result.command)
    assert words[:5] == [
        *("lm_eval", "--model", "hf", "--model_args"),
        "pretrained=data/model,dtype=float32" + ("" if fits else ",parallelize=True"),
    ]


@pytest.mark.slow
def test_lm_evals_command_runs_on_layers_of_different_width(project, tiny_model, tiny_tokenizer):
    model = tiny_model(vocab_size=400)
    cut_neurons(layers_of(model)[1], torch.arange(16))
    directory = project / "model"
    for path in directory.iterdir():
        path.unlink()
    save(rebuild(model, "per_layer"), tiny_tokenizer, directory, torch.float32)
    result = ask(project, 99)
    assert result.ok, result.reason
    assert result.questions == len(QUESTIONS)
    assert "dtype=float32,trust_remote_code=True" in result.command


@pytest.mark.slow
def test_lm_evals_command_on_a_model_that_gives_nan_is_a_failure(project):
    norm = "model.norm.weight"
    change(project / "model", lambda weights: weights[norm].fill_(float("nan")))
    result = ask(project, 2)
    assert not result.ok
    assert "no finite likelihood on question 1 of counting" in result.reason
