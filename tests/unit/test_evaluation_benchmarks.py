"""lm-eval's accuracies on local questions, against log-likelihoods summed by hand."""

import copy
import hashlib
import json
import math
import socket
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from pruneflow.artifacts import write_manifest
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.questions.answers import answer_questions, chance_level

LM_EVAL = Path("configs/lm_eval")
PROMPTS = {"piqa": "Question: {question}\nAnswer:", "siqa": "Q: {context} {question}\nA:"}
WORDS = ["ant", "boat", "cat", "drum", "egg", "fork", "gate", "hat", "ink", "kite", "oak"]


@pytest.fixture(scope="module")
def model(tiny_model) -> LlamaForCausalLM:
    return tiny_model(vocab_size=400, max_position_embeddings=256).float()


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


def write(directory: Path, task: str, questions: list[dict], **changes: object) -> None:
    """Write what the stage questions would write, with a manifest that fits."""
    values = yaml.safe_load((LM_EVAL / f"{task}.yaml").read_text()) | changes
    # Where a user's own `lm_eval` would look; pruneflow finds the file wherever it is run.
    values["dataset_kwargs"] = {"data_files": {"test": f"data/questions/{task}.jsonl"}}
    (directory / f"{task}.yaml").write_text(yaml.safe_dump(values))
    lines = [json.dumps(question) + "\n" for question in questions]
    (directory / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
    tasks = {path.stem: {"usable": 1000} for path in directory.glob("*.jsonl")}
    write_manifest(directory, tasks=tasks, seed=5)


def likelihood(model, tokenizer, context: str, answer: str) -> float:
    context_ids = tokenizer(context, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([context_ids + tokenizer(answer, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        scores = model(ids).logits[0, :-1].double().log_softmax(-1)
    picked = scores.gather(1, ids[0, 1:, None])[len(context_ids) - 1 :]
    return float(picked.sum())


@pytest.mark.parametrize("batch_tokens", [1, 512])
def test_accuracies_are_those_of_likelihoods_by_hand(
    model, tiny_tokenizer, benchmarks, records, batch_tokens
):
    result = answer_questions(model, tiny_tokenizer, benchmarks, batch_tokens)
    for task, questions in records.items():
        plain, normed = [], []
        for question in questions:
            context = PROMPTS[task].format(**question)
            choices = question["choices"]
            scores = [
                likelihood(model, tiny_tokenizer, context, f" {choice}") for choice in choices
            ]
            by_length = [score / len(text) for score, text in zip(scores, choices, strict=True)]
            plain.append(int(scores.index(max(scores)) == question["label"]))
            normed.append(int(by_length.index(max(by_length)) == question["label"]))
        assert plain != normed, "the two metrics agree everywhere: the test could not tell them"
        assert result[task]["acc"] == pytest.approx(sum(plain) / 24)
        assert result[task]["acc_norm"] == pytest.approx(sum(normed) / 24)
        assert result[task]["metric"] == "acc_norm"
        assert result[task]["correct"] == normed
        assert result[task]["questions"] == 24
        assert result[task]["available"] == 1000 and result[task]["seed"] == 5
        assert result[task]["prompt"] == PROMPTS[task].format(**questions[0])
        assert (result[task]["shots"], result[task]["version"]) == (0, 1.0)
        parts = [(benchmarks / f"{task}.{kind}").read_bytes() for kind in ("yaml", "jsonl")]
        assert result[task]["digest"] == hashlib.sha256(b"".join(parts)).hexdigest()
    assert result["piqa"]["chance"] == 0.5
    assert result["siqa"]["chance"] == pytest.approx(1 / 3)
    json.dumps(result, allow_nan=False)


def test_no_network_one_progress_bar_and_random_state_untouched(
    model, tiny_tokenizer, benchmarks, monkeypatch, capfd, tmp_path_factory
):
    def refuse(*_: object) -> None:
        raise AssertionError("lm-eval reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = torch.random.get_rng_state()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    answer_questions(model, tiny_tokenizer, benchmarks, 512, label="dense")
    assert torch.equal(before, torch.random.get_rng_state())
    out, err = capfd.readouterr()
    assert out == ""
    assert {line.split(":")[0] for line in err.replace("\r", "\n").splitlines() if line} == {
        "dense"
    }


def test_a_model_without_finite_likelihoods_is_refused(model, tiny_tokenizer, benchmarks):
    damaged = copy.deepcopy(model)
    damaged.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(InputError, match="likelihood on question 1 of piqa is not finite"):
        answer_questions(damaged, tiny_tokenizer, benchmarks, 512)


def test_a_changed_file_is_refused(model, tiny_tokenizer, benchmarks):
    (benchmarks / "piqa.jsonl").write_text("{nonsense\n")
    with pytest.raises(DamagedArtifactError, match=r"piqa\.jsonl is damaged"):
        answer_questions(model, tiny_tokenizer, benchmarks, 512)


def test_a_prompt_that_cannot_be_made_is_one_line(model, tiny_tokenizer, benchmarks, records):
    write(benchmarks, "piqa", records["piqa"], doc_to_text="{{question | no_such_filter}}")
    with pytest.raises(InputError, match="no_such_filter"):
        answer_questions(model, tiny_tokenizer, benchmarks, 512)


SUMS = [
    {"id": f"a-{n}", "context": f"An ant has {n} hats.", "question": "How many?", "answer": str(n)}
    for n in range(8, 14)
]


def test_generated_answers_are_the_last_number_of_what_lm_eval_writes(
    model, tiny_tokenizer, tmp_path, monkeypatch
):
    """What the model would write is put in its place: whether it is right is counted here."""
    write(tmp_path, "asdiv", SUMS)
    texts = {
        8: " 3 + 5 = 8. The answer is 8.",
        9: " The answer is 9.00 dollars",
        10: " 10 hats, no, 11 hats",
        11: " none",
        12: " 1,200 / 100 = 12",
        13: " The answer is 13.5",
    }
    asked = []

    def generate(self: object, requests: list, **_: object) -> list[str]:
        asked.extend(request.args for request in requests)
        prompts = [request.args[0] for request in requests]
        return [texts[int(prompt.split("has ")[-1].split()[0])] for prompt in prompts]

    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.generate_until", generate)
    result = answer_questions(model, tiny_tokenizer, tmp_path, 512)["asdiv"]
    assert result["correct"] == [1, 1, 0, 0, 1, 0]
    assert result["exact_match"] == pytest.approx(0.5)
    assert result["answers"] == list(texts.values())[:5]
    assert (result["metric"], result["chance"], result["shots"]) == ("exact_match", 0, 4)
    assert result["prompt"] in [prompt for prompt, _ in asked]
    assert result["prompt"].endswith("Question: An ant has 8 hats. How many?\nAnswer:")
    assert result["prompt"].count("The answer is") == 4
    assert asked[0][1]["do_sample"] is False
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("yes", [4, 12, 20])
def test_chance_is_the_commoner_answer_where_all_questions_have_the_same_choices(
    model, tiny_tokenizer, tmp_path, yes
):
    questions = [
        {
            "id": f"b-{number}",
            "context": f"Fork {number}.",
            "question": "is it so",
            "choices": ["no", "yes"],
            "label": int(number < yes),
        }
        for number in range(24)
    ]
    write(tmp_path, "boolq", questions)
    result = answer_questions(model, tiny_tokenizer, tmp_path, 512)["boolq"]
    assert result["chance"] == pytest.approx(max(yes, 24 - yes) / 24)
    assert result["metric"] == "acc" and "acc_norm" not in result


def test_letters_and_differing_choices_have_the_stated_chance():
    assert chance_level(0.5, [[" A", " B"]] * 3, [0, 0, 0]) == 0.5
    assert chance_level(0.5, [[" yes", " no"], [" he", " she"]], [0, 0]) == 0.5
    assert chance_level(0.5, [[" yes", " no"]] * 4, [0, 0, 0, 1]) == 0.75
