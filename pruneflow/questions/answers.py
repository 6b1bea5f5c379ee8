"""Evaluation on the questions in data/questions with lm-eval, offline."""

import hashlib
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneflow.artifacts import verify_manifest
from pruneflow.errors import InputError
from pruneflow.questions.likelihood import TokenBudgetLM
from pruneflow.questions.task_files import METRICS, TaskFile, quiet, read_task

Sample = dict[str, Any]
SHOWN_ANSWERS = 5


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions_dir: Path,
    batch_tokens: int,
    label: str = "questions",
) -> dict[str, dict[str, Any]]:
    """Evaluate `model` with lm-eval on every question in `questions_dir`.

    Args:
        model: a causal language model on any device.
        tokenizer: its tokenizer.
        questions_dir: folder that the stage questions has written.
        batch_tokens: maximum tokens in one forward pass, padding included.
        label: name on the progress bar.

    Returns:
        For each task the fields of `TaskAnswers`, without those that do not apply.

    Raises:
        DamagedArtifactError: a file does not match the manifest.
        InputError: a prompt cannot be rendered, or a log-likelihood is not finite.
    """
    manifest = verify_manifest(questions_dir)
    tasks = {name: read_task(questions_dir / f"{name}.yaml") for name in sorted(manifest["tasks"])}
    configs = [
        {
            **task.model_dump(mode="json", exclude_unset=True, exclude_none=True),
            "dataset_kwargs": {
                "data_files": {"test": str((questions_dir / f"{name}.jsonl").resolve())}
            },
        }
        for name, task in tasks.items()
    ]
    try:
        samples = _ask(model, tokenizer, configs, batch_tokens, label)
    except TemplateError as error:
        raise InputError(
            f"a prompt of the tasks in {questions_dir} cannot be rendered ({error}): correct its "
            "template in configs/lm_eval"
        ) from None
    return {
        name: {
            **_tally(task, samples[name]),
            "available": manifest["tasks"][name]["usable"],
            "seed": manifest["seed"],
            "digest": task_digest(questions_dir, name),
        }
        for name, task in tasks.items()
    }


def task_digest(questions_dir: Path, task: str) -> str:
    """Return the sha256 of a task's file followed by its questions."""
    parts = [(questions_dir / f"{task}{suffix}").read_bytes() for suffix in (".yaml", ".jsonl")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def chance_level(stated: float, choices: list[list[str]], labels: list[int]) -> float:
    """Return the accuracy of a model that guesses.

    If all questions have the same choices, such as no and yes, always giving the most frequent
    answer may be better than guessing. This does not apply to letters, because the option with a
    given letter is arbitrary.

    Args:
        stated: the chance level in the task file.
        choices: the choices of every question, as in the prompt.
        labels: index of the correct choice of every question.
    """
    letters = all(len(choice.strip()) == 1 for choice in choices[0])
    if letters or any(given != choices[0] for given in choices):
        return stated
    ((_, most),) = Counter(labels).most_common(1)
    return max(stated, most / len(labels))


def _ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    configs: list[dict[str, Any]],
    batch_tokens: int,
    label: str,
) -> dict[str, list[Sample]]:
    """Run lm-eval and return its samples by task, in the order of the file.

    For a task with several filters, the samples are those of the first.
    """
    was_training = model.training
    terminal = sys.stderr
    # `simple_evaluate` would query the hub about the model and reseed torch. The data cache is
    # temporary, so that lm-eval never reads stale data.
    try:
        with quiet(), tempfile.TemporaryDirectory() as cache:
            for config in configs:
                config["dataset_kwargs"]["cache_dir"] = cache
            loaded = TaskManager(include_defaults=False).load(configs)
            results = evaluate(
                lm=TokenBudgetLM(model, tokenizer, batch_tokens, label, terminal),
                task_dict=loaded,
                log_samples=True,
                bootstrap_iters=0,
            )
    finally:
        model.train(was_training)
    return {
        task: sorted(
            (sample for sample in samples if sample["filter"] == samples[0]["filter"]),
            key=lambda sample: sample["doc_id"],
        )
        for task, samples in results["samples"].items()
    }


def _tally(task: TaskFile, samples: list[Sample]) -> dict[str, Any]:
    """Summarise lm-eval's samples of one task."""
    facts = task.metadata
    accuracies: dict[str, Any] = {
        metric: sum(float(sample[metric]) for sample in samples) / len(samples)
        for metric in METRICS[task.output_type]
        if metric in samples[0]
    }
    shown: dict[str, Any] = {}
    chance = facts.chance
    if task.output_type == "generate_until":
        shown["answers"] = [sample["resps"][0][0] for sample in samples[:SHOWN_ANSWERS]]
    else:
        _check_finite(task.task, samples)
        chance = chance_level(
            chance,
            [[choice for _, choice in sample["arguments"]] for sample in samples],
            [int(sample["target"]) for sample in samples],
        )
    return {
        **accuracies,
        **shown,
        "metric": facts.metric,
        "chance": chance,
        "questions": len(samples),
        "correct": [int(sample[facts.metric]) for sample in samples],
        "output_type": task.output_type,
        "shots": task.num_fewshot if facts.shots is None else facts.shots,
        "version": facts.version,
        "template": facts.template or task.doc_to_text,
        "prompt": samples[0]["arguments"][0][0],
    }


def _check_finite(task: str, samples: list[Sample]) -> None:
    for sample in samples:
        if not all(math.isfinite(score) for score, _ in sample["filtered_resps"]):
            raise InputError(
                f"the model's likelihood on question {sample['doc_id'] + 1} of {task} is not "
                "finite: its weights are damaged, or it was pruned too far; try a lower ratio or "
                "compute.dtype float32"
            )
