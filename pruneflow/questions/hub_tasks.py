"""Built-in tasks of lm-eval, read from the hub once and frozen: prompts, choices, answers as text.

A frozen task needs neither the network nor lm-eval's templates, and gives the same questions
everywhere.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from datasets.exceptions import DatasetsError
from httpx2 import HTTPError
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_metric_aggregation
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from pruneflow.errors import InputError
from pruneflow.progress import track
from pruneflow.questions.task_files import METRICS, Pool, Question, TaskFile, quiet
from pruneflow.settings.base import check

SHOT_SEED = 1234
"""Default seed of `lm_eval` for sampling few-shot examples."""
LISTED = 20
UNSUITABLE = {
    "class": "is written in Python",
    "process_results": "scores answers with Python code",
    "unsafe_code": "runs code that the model writes",
    "doc_to_image": "shows images",
    "doc_to_audio": "plays sounds",
}


def freeze_tasks(
    names: list[str], local: list[str], manager: TaskManager | None = None
) -> dict[str, Pool]:
    """Read tasks built into lm-eval and render every question with lm-eval's prompts.

    Prompts include the task's few-shot examples, sampled as by the `lm_eval` command. Only
    accuracies and exact match are kept of its metrics. Unusable rows are dropped and counted.

    Args:
        names: tasks of lm-eval, of output type multiple_choice or generate_until.
        local: tasks that have a file, for the error about an unknown name.
        manager: index of the tasks; by default all of lm-eval's, which take half a minute to read.

    Raises:
        InputError: a task is unknown, a group or not supported, or its data cannot be read.
    """
    if not names:
        return {}
    with quiet():
        known = manager or TaskManager()
    for name in names:
        _check_supported(name, local, known)
    return {name: _freeze(name, known) for name in track(names, "hub tasks")}


def _check_supported(name: str, local: list[str], manager: TaskManager) -> None:
    """Check that a task can be frozen, before fetching its data."""
    entry = manager.task_index.get(name)
    if entry is None:
        raise InputError(
            f"task {name} has no file in configs/lm_eval (known: {', '.join(local) or 'none'}) "
            "and is not built into lm-eval: correct evaluation.tasks"
        )
    if entry.kind.name in ("GROUP", "TAG"):
        members = list(dict.fromkeys(_members(name, manager)))
        more = f" and {len(members) - LISTED} more" if len(members) > LISTED else ""
        raise InputError(
            f"task {name} is a group of lm-eval tasks: list its tasks in evaluation.tasks "
            f"({', '.join(members[:LISTED])}{more})"
        )
    config = entry.cfg or {}
    kind = config.get("output_type", "generate_until")
    if kind not in METRICS:
        raise InputError(
            f"lm-eval's task {name} has output type {kind}: choose one with "
            f"{' or '.join(sorted(METRICS))}"
        )
    for key, reason in UNSUITABLE.items():
        if config.get(key):
            raise InputError(f"lm-eval's task {name} {reason}: choose another task")
    for metric in config.get("metric_list") or []:
        # For an unknown metric lm-eval would fetch and execute code from the hub.
        if metric.get("hf_evaluate") or get_metric_aggregation(str(metric.get("metric"))) is None:
            raise InputError(
                f"lm-eval's task {name} has the metric {metric.get('metric')}, whose code is "
                "fetched from the hub: choose another task"
            )


def _members(name: str, manager: TaskManager) -> Iterator[str]:
    """Yield the tasks of a group and of its subgroups."""
    entry = manager.task_index.get(name)
    if entry is None or entry.kind.name not in ("GROUP", "TAG"):
        yield name
        return
    listed: Any = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task")
    for member in listed if isinstance(listed, list) else []:
        inner = member.get("task", member.get("group")) if isinstance(member, dict) else member
        if isinstance(inner, str) and inner != name:
            yield from _members(inner, manager)


def _freeze(name: str, manager: TaskManager) -> Pool:
    task = _load(name, manager)
    config = task.config
    frozen = _task_file(name, task)
    asked: dict[int, list[Instance]] = {}
    for instance in task.instances:
        asked.setdefault(instance.doc_id, []).append(instance)
    rendered = _choices if frozen.output_type == "multiple_choice" else _answers
    dropped: Counter[str] = Counter()
    questions = []
    for row, instances in asked.items():
        doc = instances[0].doc
        question: Question = {
            "id": f"{name}-{row:06d}",
            "prompt": str(instances[0].args[0]),
            "question": str(task.doc_to_text(doc)),
            "texts": [text for text in doc.values() if isinstance(text, str) and text.strip()],
            **rendered(task, doc, instances),
        }
        if frozen.problem(question):
            dropped["malformed"] += 1
        else:
            questions.append(question)
    if frozen.output_type == "multiple_choice" and questions:
        chance = sum(1 / len(question["choices"]) for question in questions) / len(questions)
        facts = frozen.metadata.model_copy(update={"chance": chance})
        frozen = frozen.model_copy(update={"metadata": facts})
    split = config.test_split or config.validation_split
    subset = f"/{config.dataset_name}" if config.dataset_name else ""
    source = {
        "source": f"hub:{config.dataset_path}{subset}",
        "split": split,
        "licence": "LicenseRef-unstated",  # lm-eval does not record licences
    }
    return Pool(frozen, questions, dict(dropped), source)


def _load(name: str, manager: TaskManager) -> ConfigurableTask:
    """Let lm-eval read the data of a task and build all prompts."""
    try:
        with quiet():
            (task,) = manager.load([name])["tasks"].values()
            task.set_fewshot_seed(SHOT_SEED)
            task.build_all_requests()
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError, HTTPError) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(
            f"the data of lm-eval's task {name} cannot be read ({detail}): run where the hub can "
            "be reached (HF_HUB_OFFLINE unset), or choose a task that has a file in configs/lm_eval"
        ) from None
    if getattr(task, "multiple_input", 0):
        raise InputError(f"lm-eval's task {name} has a prompt for each choice: choose another task")
    return task


def _task_file(name: str, task: ConfigurableTask) -> TaskFile:
    """Return a task file for the frozen prompts, scored like the original task."""
    config = task.config
    choices = config.output_type == "multiple_choice"
    listed = config.metric_list or [{"metric": "acc" if choices else "exact_match"}]
    kept = [entry for entry in listed if entry["metric"] in METRICS[config.output_type]]
    metrics = [entry["metric"] for entry in kept]
    metric = next((one for one in METRICS[config.output_type] if one in metrics), None)
    if metric is None:
        raise InputError(
            f"lm-eval's task {name} has none of the metrics "
            f"{', '.join(METRICS[config.output_type])}: choose another task"
        )
    if config.repeats != 1:
        raise InputError(
            f"lm-eval's task {name} repeats each question {config.repeats} times: choose another "
            "task"
        )
    template = config.doc_to_text
    values: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "test_split": "test",
        "output_type": config.output_type,
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_target": "label" if choices else "answer",
        "target_delimiter": config.target_delimiter,
        "metric_list": kept,
        "metadata": {
            "version": (config.metadata or {}).get("version", 0),
            "metric": metric,
            "chance": 0.0,
            "shots": config.num_fewshot or 0,
            "template": template
            if isinstance(template, str)
            else f"{template.__module__}.{template.__name__}",
        },
    }
    if choices:
        values["doc_to_choice"] = "choices"
    else:
        generation = dict(config.generation_kwargs or {})
        until = generation.get("until", [])
        generation["until"] = [until] if isinstance(until, str) else until
        values |= {"generation_kwargs": generation, "filter_list": config.filter_list}
    return check(TaskFile, values, f"lm-eval's task {name} cannot be frozen")


def _choices(task: ConfigurableTask, doc: Any, instances: list[Instance]) -> Question:
    choices, label = list(task.doc_to_choice(doc)), task.doc_to_target(doc)
    if isinstance(label, str) and label in choices:
        label = choices.index(label)
    asked = [f"{task.config.target_delimiter}{choice}" for choice in choices]
    if [instance.args[1] for instance in instances[: len(choices)]] != asked:
        raise InputError(
            f"lm-eval's task {task.task_name} does not score one choice at a time: choose another "
            "task"
        )
    return {"choices": choices, "label": int(label) if isinstance(label, int) else label}


def _answers(task: ConfigurableTask, doc: Any, instances: list[Instance]) -> Question:
    answer = task.doc_to_target(doc)
    if task.multiple_target:
        return {"answer": [str(one) for one in (answer if isinstance(answer, list) else [answer])]}
    return {"answer": str(answer)}
