"""Multiple-choice questions, asked by lm-eval itself over local files, without a network."""

import contextlib
import io
import json
import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from pydantic import Field

from pruneflow.errors import InputError
from pruneflow.progress import track
from pruneflow.schema import Settings, Share, check, read_yaml

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Request = tuple[tuple[str, str], list[int], list[int]]


class TaskFacts(Settings):
    """What a task file's `metadata` states beside lm-eval's own keys."""

    version: float = Field(description="Raised when the prompt changes.")
    metric: Literal["acc", "acc_norm"] = Field(description="The accuracy reports and gates use.")
    chance: Share = Field(description="Accuracy of guessing.")
    fields: list[str] = Field(description="Text fields of a record, beside choices and label.")


def answer_questions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: list[str],
    benchmarks: Path,
    lm_eval_dir: Path,
    batch_tokens: int,
    label: str = "questions",
) -> dict[str, dict[str, Any]]:
    """Let lm-eval ask `model` the questions of each task.

    Args:
        model: a causal language model on any device.
        tokenizer: its tokenizer.
        tasks: names of files ``TASK.yaml`` in `lm_eval_dir` and ``TASK.jsonl`` in `benchmarks`.
        benchmarks: directory with the questions.
        lm_eval_dir: directory with lm-eval task files, whose data file is filled in here.
        batch_tokens: tokens in one forward pass, at most, padding included.
        label: names the work on the progress bar.

    Returns:
        For each task ``acc`` and ``acc_norm``, which of them is the ``metric``, the ``chance``
        level, the number of ``questions`` and whether each was ``correct`` (1 or 0, in the order
        of the file).

    Raises:
        InputError: a task or question file is missing or malformed, or the model gives a
            log-likelihood that is not finite.
    """
    facts: dict[str, TaskFacts] = {}
    configs = []
    for task in tasks:
        config = _read_task(task, lm_eval_dir)
        facts[task] = check(TaskFacts, config.get("metadata"), lm_eval_dir / f"{task}.yaml")
        questions = benchmarks / f"{task}.jsonl"
        _check_questions(questions, facts[task].fields)
        configs.append({**config, "dataset_kwargs": {"data_files": {"test": str(questions)}}})
    samples = _ask(model, tokenizer, configs, batch_tokens, label)
    return {task: _tally(task, samples[task], facts[task]) for task in tasks}


def _read_task(task: str, lm_eval_dir: Path) -> dict[str, Any]:
    """Read an lm-eval task file, and refuse one that would fetch its data elsewhere."""
    path = lm_eval_dir / f"{task}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in lm_eval_dir.glob("*.yaml"))) or "none"
        raise InputError(f"{path} is missing: choose tasks that have a file there ({known})")
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a mapping: write it as an lm-eval task")
    needed = {
        "task": task,
        "dataset_path": "json",
        "test_split": "test",
        "output_type": "multiple_choice",
    }
    for key, value in needed.items():
        if config.get(key) != value:
            raise InputError(f"{path}: {key} is {config.get(key)!r} and must be {value!r}")
    return config


def _check_questions(path: Path, fields: list[str]) -> None:
    """Check every record, for lm-eval would count a malformed one as a wrong answer."""
    again = "write the questions again (`pruneflow run`)"
    if not path.is_file():
        raise InputError(f"{path} is missing: {again}")
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise InputError(f"{path} has no questions: {again}")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error.msg}): {again}") from None
        problem = _problem(record, fields)
        if problem:
            raise InputError(f"{path}, line {number}: {problem}: {again}")


def _problem(record: Any, fields: list[str]) -> str | None:
    """Say what is wrong with one question, or None."""
    if not isinstance(record, dict):
        return "it is not a mapping"
    for field in fields:
        if not isinstance(record.get(field), str) or not record[field].strip():
            return f"{field} is missing or empty"
    choices, answer = record.get("choices"), record.get("label")
    if not isinstance(choices, list) or len(choices) < 2:
        return "choices must be a list of two or more texts"
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        return "a choice is empty"
    if type(answer) is not int or not 0 <= answer < len(choices):
        return f"label is {answer!r}, and must be the index of a choice"
    return None


def _ask(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    configs: list[dict[str, Any]],
    batch_tokens: int,
    label: str,
) -> dict[str, list[dict[str, Any]]]:
    """Run lm-eval and return its record of every question, by task, in the order of the file."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    was_training = model.training
    terminal = sys.stderr
    # `evaluate`, not `simple_evaluate`: the latter asks a hub about the model and reseeds torch.
    # The data cache is thrown away, so that nothing stale is ever read from it.
    try:
        with _quiet(), tempfile.TemporaryDirectory() as cache:
            for config in configs:
                config["dataset_kwargs"]["cache_dir"] = cache
            loaded = TaskManager(include_defaults=False).load(configs)
            results = evaluate(
                lm=_language_model(model, tokenizer, batch_tokens, label, terminal),
                task_dict=loaded,
                log_samples=True,
                bootstrap_iters=0,
            )
    finally:
        model.train(was_training)
    return {
        task: sorted(samples, key=lambda sample: sample["doc_id"])
        for task, samples in results["samples"].items()
    }


def _language_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    batch_tokens: int,
    label: str,
    terminal: TextIO,
) -> "HFLM":
    """Return lm-eval's wrapper of a loaded model, with batches by tokens instead of by rows.

    Its one progress bar goes to `terminal`, for standard error is silent while lm-eval works.
    """
    from lm_eval.models.huggingface import HFLM

    class TokenBudgetLM(HFLM):
        """Sorts requests by length, so that hardly any padding is computed."""

        def _loglikelihood_tokens(
            self,
            requests: list[Request],
            disable_tqdm: bool = False,
            override_bs: int | None = None,
        ) -> list[tuple[float, bool]]:
            batches = batches_by_tokens(
                [len(context) + len(answer) for _, context, answer in requests], batch_tokens
            )
            answers: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
            with contextlib.redirect_stderr(terminal):
                for batch in track(batches, label):
                    self.batch_size_per_gpu = len(batch)
                    chosen = [requests[index] for index in batch]
                    scored = super()._loglikelihood_tokens(chosen, disable_tqdm=True)
                    for index, answer in zip(batch, scored, strict=True):
                        answers[index] = answer
            return answers

    return TokenBudgetLM(
        pretrained=model, tokenizer=tokenizer, batch_size=1, softmax_dtype="float32"
    )


def batches_by_tokens(lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Group indices, longest first, so that rows times the longest row is at most `batch_tokens`.

    A request longer than the budget is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if room == 0:
            batches.append([])
            room = max(1, batch_tokens // max(1, lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's notices and its many small progress bars off the terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _tally(task: str, samples: list[dict[str, Any]], facts: TaskFacts) -> dict[str, Any]:
    """Turn lm-eval's records of one task into the report's numbers."""
    for sample in samples:
        if not all(math.isfinite(score) for score, _ in sample["filtered_resps"]):
            raise InputError(
                f"the model gives no finite likelihood on question {sample['doc_id'] + 1} of "
                f"{task}: its weights are damaged, or it was pruned too far; try a lower ratio "
                "or compute.dtype float32"
            )
    correct = [int(sample[facts.metric]) for sample in samples]
    accuracies: dict[str, Any] = {
        metric: sum(sample[metric] for sample in samples) / len(samples)
        for metric in ("acc", "acc_norm")
        if metric in samples[0]
    }
    return {
        **accuracies,
        "metric": facts.metric,
        "chance": facts.chance,
        "questions": len(samples),
        "correct": correct,
    }
