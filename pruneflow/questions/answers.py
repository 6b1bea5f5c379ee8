"""The questions of data/questions, asked by lm-eval itself, without a network."""

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
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.questions.likelihood import language_model
from pruneflow.questions.task_files import METRICS, TaskFile, quiet, read_questions, read_task

Sample = dict[str, Any]
SHOWN_ANSWERS = 5


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions_dir: Path,
    batch_tokens: int,
    label: str = "questions",
) -> dict[str, dict[str, Any]]:
    """Let lm-eval ask `model` every question in `questions_dir`.

    Args:
        model: a causal language model on any device.
        tokenizer: its tokenizer.
        questions_dir: folder of the stage questions: ``TASK.yaml``, ``TASK.jsonl`` and a manifest.
        batch_tokens: tokens in one forward pass, at most, padding included.
        label: names the work on the progress bar.

    Returns:
        For each task the accuracies that it has of ``acc``, ``acc_norm`` and ``exact_match``, which
        of them is the ``metric``, whether each question was ``correct`` (1 or 0, in the order of
        the file), how many ``questions`` were asked and how many were ``available`` to draw from
        with which ``seed``; the ``chance`` level (see `chance_level`); ``output_type``, ``shots``
        (worked examples in a prompt), the task's ``version``, the ``template`` of prompts and the
        whole first ``prompt``; ``digest``, the sha256 of task file and questions one after the
        other; and the first ``answers`` where the model writes them.

    Raises:
        DamagedArtifactError: a file is not the manifest's.
        InputError: a task or question file is malformed, or the model gives a log-likelihood that
            is not finite.
    """
    manifest = verify_manifest(questions_dir)
    tasks = _read_tasks(questions_dir, manifest)
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
            f"a prompt of the tasks in {questions_dir} cannot be made ({error}): correct its "
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
    """Return the sha256 of a task's file and its questions, one after the other."""
    parts = [(questions_dir / f"{task}{suffix}").read_bytes() for suffix in (".yaml", ".jsonl")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def chance_level(stated: float, choices: list[list[str]], labels: list[int]) -> float:
    """Return the accuracy of a model that knows nothing of the questions.

    Where all questions have the same choices, such as no and yes, always giving the commonest
    answer scores its share, which may be above one by the number of choices. Letters do not count:
    which option stands under a letter is chance.

    Args:
        stated: what the task file says.
        choices: of every question, as they are asked.
        labels: the right one of each, an index.
    """
    letters = all(len(choice.strip()) == 1 for choice in choices[0])
    if letters or any(given != choices[0] for given in choices):
        return stated
    ((_, most),) = Counter(labels).most_common(1)
    return max(stated, most / len(labels))


def _read_tasks(questions_dir: Path, manifest: dict[str, Any]) -> dict[str, TaskFile]:
    names = sorted(manifest.get("tasks") or {})
    if not names or "seed" not in manifest:
        raise DamagedArtifactError(f"{questions_dir} has no tasks: run the stage questions again")
    tasks = {name: read_task(questions_dir / f"{name}.yaml") for name in names}
    for name, task in tasks.items():
        read_questions(questions_dir / f"{name}.jsonl", task)
    return tasks


def _ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    configs: list[dict[str, Any]],
    batch_tokens: int,
    label: str,
) -> dict[str, list[Sample]]:
    """Run lm-eval and return its record of every question, by task, in the order of the file.

    Where a task has several filters, the records are those of the first.
    """
    was_training = model.training
    terminal = sys.stderr
    # `evaluate`, not `simple_evaluate`: the latter asks a hub about the model and reseeds torch.
    # The data cache is thrown away, so that nothing stale is ever read from it.
    try:
        with quiet(), tempfile.TemporaryDirectory() as cache:
            for config in configs:
                config["dataset_kwargs"]["cache_dir"] = cache
            loaded = TaskManager(include_defaults=False).load(configs)
            results = evaluate(
                lm=language_model(model, tokenizer, batch_tokens, label, terminal),
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
    """Turn lm-eval's records of one task into the report's numbers."""
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
        _refuse_not_finite(task.task, samples)
        chance = chance_level(
            chance,
            [[asked[1] for asked in sample["arguments"]] for sample in samples],
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


def _refuse_not_finite(task: str, samples: list[Sample]) -> None:
    for sample in samples:
        if not all(math.isfinite(score) for score, _ in sample["filtered_resps"]):
            raise InputError(
                f"the model gives no finite likelihood on question {sample['doc_id'] + 1} of "
                f"{task}: its weights are damaged, or it was pruned too far; try a lower ratio "
                "or compute.dtype float32"
            )
