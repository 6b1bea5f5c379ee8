"""lm-eval's accuracies on local questions, against log-likelihoods summed by hand."""

import copy
import json
import math
import shutil
import socket
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pruneflow.errors import InputError
from pruneflow.evaluation.benchmarks import answer_questions, batches_by_tokens

LM_EVAL = Path("configs/lm_eval")
PROMPTS = {"piqa": "Question: {question}\nAnswer:", "siqa": "Q: {context} {question}\nA:"}
WORDS = ["ant", "boat", "cat", "drum", "egg", "fork", "gate", "hat", "ink", "kite", "oak"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: no training, and every text has ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", bos_token="<eos>"
    )


@pytest.fixture(scope="module")
def model(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def records() -> dict[str, list[dict]]:
    generator = torch.Generator().manual_seed(7)

    def text(longest: int) -> str:
        words = int(torch.randint(1, longest + 1, (1,), generator=generator))
        picks = torch.randint(len(WORDS), (words,), generator=generator)
        return " ".join(WORDS[pick] for pick in picks)

    result = {}
    for task, choices in (("piqa", 2), ("siqa", 3)):
        result[task] = [
            {
                "id": f"{task}-{number}",
                "question": f"What about the {text(6)}?",
                "choices": [text(4) for _ in range(choices)],
                "label": number % choices,
                **({"context": f"There is a {text(5)}."} if task == "siqa" else {}),
            }
            for number in range(24)
        ]
    return result


@pytest.fixture
def benchmarks(tmp_path, records) -> Path:
    for task, questions in records.items():
        write(tmp_path, task, questions)
    return tmp_path


def write(directory: Path, task: str, questions: list[dict]) -> None:
    lines = [json.dumps(question) + "\n" for question in questions]
    (directory / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")


def likelihood(model, tokenizer, context: str, answer: str) -> float:
    context_ids = tokenizer(context, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([context_ids + tokenizer(answer, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].double().log_softmax(-1)
    picked = scores.gather(1, ids[0, 1:, None])[len(context_ids) - 1 :]
    return float(picked.sum())


@pytest.mark.parametrize("batch_tokens", [1, 512])
def test_accuracies_are_those_of_likelihoods_by_hand(
    model, tokenizer, benchmarks, records, batch_tokens
):
    result = answer_questions(model, tokenizer, ["piqa", "siqa"], benchmarks, LM_EVAL, batch_tokens)
    for task, questions in records.items():
        plain, normed = [], []
        for question in questions:
            context = PROMPTS[task].format(**question)
            choices = question["choices"]
            scores = [likelihood(model, tokenizer, context, f" {choice}") for choice in choices]
            by_length = [score / len(text) for score, text in zip(scores, choices, strict=True)]
            plain.append(int(scores.index(max(scores)) == question["label"]))
            normed.append(int(by_length.index(max(by_length)) == question["label"]))
        assert plain != normed, "the two metrics agree everywhere: the test could not tell them"
        assert result[task]["acc"] == pytest.approx(sum(plain) / 24)
        assert result[task]["acc_norm"] == pytest.approx(sum(normed) / 24)
        assert result[task]["metric"] == "acc_norm"
        assert result[task]["correct"] == normed
        assert result[task]["questions"] == 24
    assert result["piqa"]["chance"] == 0.5
    assert result["siqa"]["chance"] == pytest.approx(1 / 3)
    json.dumps(result, allow_nan=False)


def test_no_network_one_progress_bar_and_random_state_untouched(
    model, tokenizer, benchmarks, monkeypatch, capfd
):
    def refuse(*_: object) -> None:
        raise AssertionError("lm-eval reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = torch.random.get_rng_state()
    answer_questions(model, tokenizer, ["piqa"], benchmarks, LM_EVAL, 512, label="dense")
    assert torch.equal(before, torch.random.get_rng_state())
    out, err = capfd.readouterr()
    assert out == ""
    assert {line.split(":")[0] for line in err.replace("\r", "\n").splitlines() if line} == {
        "dense"
    }


def test_a_model_without_finite_likelihoods_is_refused(model, tokenizer, benchmarks):
    damaged = copy.deepcopy(model)
    damaged.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(InputError, match="no finite likelihood on question 1 of piqa"):
        answer_questions(damaged, tokenizer, ["piqa"], benchmarks, LM_EVAL, 512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "context is missing or empty"),
        ({"question": " "}, "question is missing or empty"),
        ({"choices": ["a"]}, "choices must be a list of two or more"),
        ({"choices": ["a", ""]}, "a choice is empty"),
        ({"label": 3}, "label is 3"),
        ({"label": "1"}, "label is '1'"),
        ({"label": True}, "label is True"),
    ],
)
def test_a_malformed_question_is_named_by_line(
    model, tokenizer, benchmarks, records, change, message
):
    questions = copy.deepcopy(records["siqa"])
    questions[4].update(change)
    write(benchmarks, "siqa", questions)
    with pytest.raises(InputError, match=rf"siqa\.jsonl, line 5: {message}"):
        answer_questions(model, tokenizer, ["siqa"], benchmarks, LM_EVAL, 512)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no questions"), ("{nonsense\n", "line 1 is not JSON"), (None, "is missing")],
)
def test_a_file_without_questions_is_refused(model, tokenizer, benchmarks, content, message):
    path = benchmarks / "piqa.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        answer_questions(model, tokenizer, ["piqa"], benchmarks, LM_EVAL, 512)


def test_an_unknown_task_names_the_known_ones(model, tokenizer, benchmarks):
    with pytest.raises(InputError, match=r"arc\.yaml is missing.*piqa, siqa"):
        answer_questions(model, tokenizer, ["arc"], benchmarks, LM_EVAL, 512)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dataset_path: json", "dataset_path: baber/piqa", "dataset_path"),
        ("task: piqa", "task: other", "task is 'other'"),
        ("metric: acc_norm\n  chance", "metric: f1\n  chance", "metric"),
        ("chance: 0.5", "chance: 1.5", "chance"),
    ],
)
def test_a_task_file_that_would_not_work_is_refused(
    model, tokenizer, benchmarks, tmp_path, old, new, message
):
    tasks = tmp_path / "tasks"
    shutil.copytree(LM_EVAL, tasks)
    text = (tasks / "piqa.yaml").read_text()
    assert old in text
    (tasks / "piqa.yaml").write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        answer_questions(model, tokenizer, ["piqa"], benchmarks, tasks, 512)


def test_task_files_hold_no_path():
    for path in LM_EVAL.glob("*.yaml"):
        assert "data_files" not in path.read_text()


def test_batches_hold_every_request_once_within_the_budget():
    lengths = [5, 100, 7, 7, 3, 60, 5, 5, 1]
    batches = batches_by_tokens(lengths, 64)
    assert sorted(index for batch in batches for index in batch) == list(range(9))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= 64 or len(batch) == 1
    assert batches[0] == [1]
