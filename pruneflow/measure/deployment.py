"""Using a model directory without pruneflow: does it load, does lm-eval run, how large is it."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from pruneflow.errors import DamagedArtifactError
from pruneflow.measure.latency_record import DiskUsage, LmEvalAnswers, Memory
from pruneflow.measure.reload import PROJECT
from pruneflow.models.digests import weight_file_bytes
from pruneflow.models.round_record import RECORD
from pruneflow.models.structure import layers_of
from pruneflow.settings.base import read_yaml

RELOAD = Path(__file__).with_name("reload.py")
RELOAD_TOKENS = 24
TIMEOUT = 1800  # seconds; loading a large model from a slow disk takes minutes
LM_EVAL = (
    f"import runpy, sys; sys.modules.update(dict.fromkeys({PROJECT!r})); "
    "runpy.run_module('lm_eval', run_name='__main__', alter_sys=True)"
)
"""``python -m lm_eval``, once every import of this project fails."""


@dataclass(frozen=True)
class FreshProcess:
    """What a fresh process without pruneflow does with a model directory.

    Attributes:
        ok: whether it loads the model and generates.
        reason: why it does not.
        text: continuation of the first prompt.
        prompt_ids: tokens of that prompt.
        ids: tokens of its continuation.
        answers: the continuation of each prompt.
        memory: None where the process failed.
    """

    ok: bool
    reason: str | None = None
    text: str | None = None
    prompt_ids: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    memory: Memory | None = None


def reload_alone(directory: Path, dtype: str, device: str = "cpu") -> FreshProcess:
    """Load a model directory in a process that cannot import this project, and generate.

    Args:
        directory: a model directory of either layout.
        dtype: ``bfloat16`` or ``float32``.
        device: ``cpu``, or ``cuda`` to generate there as well and measure its memory too.
    """
    arguments = (str(directory.resolve()), dtype, str(RELOAD_TOKENS), device)
    result = isolated(str(RELOAD.resolve()), *arguments)
    if result.returncode != 0:
        return FreshProcess(ok=False, reason=_failure(result))
    report = json.loads(result.stdout.splitlines()[-1])
    problems = (
        report["problems"] if report["ids"] else [*report["problems"], "it generated nothing"]
    )
    return FreshProcess(
        ok=not problems,
        reason="; ".join(problems) or None,
        text=report["text"],
        prompt_ids=report["prompt_ids"],
        ids=report["ids"],
        answers={answer["prompt"]: answer["text"] for answer in report["answers"]},
        memory=Memory(**report["memory"]),
    )


def task_to_ask(tasks: Iterable[str], questions_dir: Path) -> str:
    """The first multiple-choice task, for that takes no text to be written; else the first task.

    Raises:
        DamagedArtifactError: a task has no file in `questions_dir`.
    """
    names = list(tasks)
    for name in names:
        path = questions_dir / f"{name}.yaml"
        if not path.is_file():
            raise DamagedArtifactError(f"{path} is missing: run `dvc repro questions`")
        if read_yaml(path).get("output_type") == "multiple_choice":
            return name
    return names[0]


def lm_eval_command(
    directory: Path,
    questions_dir: Path,
    task: str,
    questions: int,
    dtype: str,
    device: str,
    fits: bool = True,
) -> LmEvalAnswers:
    """Ask a model directory the first questions of a task with lm-eval's own command.

    The command is the one that a user types in the project folder. It runs in a fresh process that
    cannot import this project, offline, in a folder that holds nothing but the two directories.

    Args:
        directory: model directory of either layout, relative to the project folder.
        questions_dir: folder with TASK.yaml and its questions, relative to the project folder.
        task: name of the task.
        questions: how many to ask, at most, from the first on.
        dtype: ``bfloat16`` or ``float32``.
        device: ``cpu`` or ``cuda``.
        fits: whether the device holds the model; else lm-eval spreads it over GPUs and host memory.
    """
    model = f"pretrained={directory},dtype={dtype}"
    if _brings_code(directory):
        model += ",trust_remote_code=True"
    if not fits:
        model += ",parallelize=True"
    arguments = ["--model", "hf", "--model_args", model]
    arguments += ["--tasks", task, "--include_path", str(questions_dir)]
    arguments += ["--limit", str(questions), "--batch_size", "1", "--device", device]
    answers: _Answers | None = None
    with tempfile.TemporaryDirectory() as output:
        keep = ["--log_samples", "--output_path", output]
        result = isolated("-c", LM_EVAL, *arguments, *keep, links=(directory, questions_dir))
        reason: str | None = None
        if result.returncode != 0:
            reason = _failure(result)
        else:
            try:
                answers = _read_answers(Path(output), task)
            except (LookupError, TypeError, ValueError) as error:
                reason = f"lm_eval's results cannot be read: {error!r}"
            else:
                reason = answers.problem
    return LmEvalAnswers(
        ok=reason is None,
        reason=reason,
        command=shlex.join(["lm_eval", *arguments]),
        task=task,
        questions=answers.questions if answers else questions,
        metric=answers.metric if answers else None,
        accuracy=answers.accuracy if answers else None,
        correct=answers.correct if answers else None,
    )


def disk_usage(directory: Path) -> DiskUsage:
    """Return the bytes on disk of a model directory, without round.json."""
    files = {
        path.name: path.stat().st_size
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != RECORD
    }
    return DiskUsage(total=sum(files.values()), weights=weight_file_bytes(directory), files=files)


def slow_widths(model: PreTrainedModel, multiple: int) -> list[str]:
    """Name the widths that GPUs are slow at: those that are no multiple of `multiple`.

    A matrix that ends within a tile of the tensor cores costs the full tile (NVIDIA, Matrix
    Multiplication Background User's Guide, section 3). Rows that are no multiple of 16 bytes cannot
    be read by the fast kernels at all: on an H200 (bfloat16, torch 2.11), widths off by 32 from a
    multiple of 64 cost about a tenth of a product's speed, widths off by 4 two thirds of it.

    Returns:
        At most one sentence each for MLP and attention; none when all widths fit.
    """
    layers = layers_of(model)
    mlp = [layer.neurons for layer in layers]
    attention = [layer.heads * layer.head_dim for layer in layers]
    head_dim = layers[0].head_dim
    found = (
        ("MLP width", mlp, f"set pruning.neuron_multiple to {multiple}"),
        (
            f"attention width (heads of {head_dim} channels)",
            attention,
            "leave heads and kv_groups out of pruning.units, or choose another target",
        ),
    )
    return [
        f"{name} {_list(bad)} in {len(bad)} of {len(widths)} layers is no multiple of {multiple}, "
        f"which GPUs run {_cost(bad)}: {fix}"
        for name, widths, fix in found
        if (bad := [width for width in widths if width % multiple])
    ]


def isolated(*arguments: str, links: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh isolated process, offline, in a folder with nothing else in it.

    Args:
        arguments: what follows ``python -I``: a file, or ``-c`` and code, and its arguments.
        links: relative paths that are in that folder as well, under the same names.

    Returns:
        The ended process; return code 1 when it took longer than `TIMEOUT`.
    """
    with tempfile.TemporaryDirectory() as place:
        folder, caches = Path(place, "folder"), Path(place, "caches")
        folder.mkdir()
        for path in links:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(path.resolve(), target_is_directory=True)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_CACHE": str(caches / "datasets"),
            "HF_MODULES_CACHE": str(caches / "modules"),
            "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false",
        }
        environment.pop("HF_TOKEN", None)
        try:
            return subprocess.run(
                [sys.executable, "-I", "-X", "utf8", *arguments],
                cwd=folder,
                env=environment,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess([], 1, "", f"no answer within {TIMEOUT} seconds")


def _failure(result: subprocess.CompletedProcess[str]) -> str:
    """Return in one line why a process failed."""
    if result.returncode < 0:
        name = signal.strsignal(-result.returncode) or f"signal {-result.returncode}"
        return f"the process was ended from outside ({name}): memory may have run out"
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {result.returncode}"


def _brings_code(directory: Path) -> bool:
    """Whether the directory has a model file of its own (layout per_layer), to be trusted."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # lm-eval will report what is wrong with it
    return isinstance(config, dict) and "auto_map" in config


class _Answers(NamedTuple):
    """What lm-eval wrote; `problem` is None where there is none."""

    questions: int
    metric: str
    accuracy: float | None
    correct: list[int]
    problem: str | None


def _read_answers(output: Path, task: str) -> _Answers:
    """Read the results of lm-eval below `output`."""
    (aggregated,) = output.rglob("results_*.json")
    (answered,) = output.rglob(f"samples_{task}_*.jsonl")
    results = json.loads(aggregated.read_text(encoding="utf-8"))
    with answered.open(encoding="utf-8") as lines:
        samples = [json.loads(line) for line in lines]
    # With several filters an answer is there once for each; the first is as good as any.
    name = samples[0]["filter"]
    samples = [sample for sample in samples if sample["filter"] == name]
    samples.sort(key=lambda sample: sample["doc_id"])
    config = results["configs"][task]
    metric = config["metadata"]["metric"]
    problem = None
    if config["output_type"] == "multiple_choice":
        for sample in samples:
            if not all(math.isfinite(float(score)) for score, _ in sample["filtered_resps"]):
                problem = f"no finite likelihood on question {sample['doc_id'] + 1} of {task}"
                break
    accuracy = results["results"][task][f"{metric},{name}"]
    return _Answers(
        questions=len(samples),
        metric=metric,
        accuracy=accuracy if math.isfinite(accuracy) else None,
        correct=[int(sample[metric]) for sample in samples],
        problem=problem,
    )


def _cost(widths: list[int]) -> str:
    """How much slower; 16 bytes hold 8 numbers of 2 bytes."""
    return "several times slower" if any(width % 8 for width in widths) else "a little slower"


def _list(widths: list[int]) -> str:
    """Name a few of the different widths, smallest first."""
    different = sorted(set(widths))
    more = len(different) - 3
    return ", ".join(map(str, different[:3])) + (f" and {more} more" if more > 0 else "")
