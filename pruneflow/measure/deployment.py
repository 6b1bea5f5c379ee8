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
from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import PreTrainedModel

from pruneflow.artifacts import read_json
from pruneflow.errors import DamagedArtifactError
from pruneflow.measure.latency_record import DiskUsage, LmEvalAnswers, Memory
from pruneflow.measure.reload import PROJECT
from pruneflow.models.digests import weight_file_bytes
from pruneflow.models.round_record import RECORD
from pruneflow.models.structure import layers_of
from pruneflow.records import Record
from pruneflow.settings.base import read_yaml

RELOAD = Path(__file__).with_name("reload.py")
RELOAD_TOKENS = 24
TIMEOUT = 1800  # seconds; loading a large model from a slow disk takes minutes
LM_EVAL = (
    f"import runpy, sys; sys.modules.update(dict.fromkeys({PROJECT!r})); "
    "runpy.run_module('lm_eval', run_name='__main__', alter_sys=True)"
)
"""``python -m lm_eval``, once every import of this project fails."""


class FreshProcess(Record):
    """What a fresh process without pruneflow does with a model directory."""

    problems: list[str] = Field(description="Why it does not load the model or generate.")
    prompt_ids: list[int] = Field([], description="Tokens of the first prompt.")
    ids: list[int] = Field([], description="Tokens of its continuation.")
    answers: dict[str, str] = Field({}, description="The continuation of each prompt.")
    memory: Memory | None = Field(None, description="Peak memory; null if the process failed.")


def reload_isolated(directory: Path, dtype: str, device: str = "cpu") -> FreshProcess:
    """Load a model directory in a process that cannot import this project, and generate.

    Args:
        directory: a model directory of either layout.
        dtype: ``bfloat16`` or ``float32``.
        device: ``cpu``, or ``cuda`` to generate there as well and measure its memory too.
    """
    arguments = (str(directory.resolve()), dtype, str(RELOAD_TOKENS), device)
    result = run_isolated(str(RELOAD.resolve()), *arguments)
    if result.returncode != 0:
        return FreshProcess(problems=[_failure(result)])
    return FreshProcess.model_validate_json(result.stdout.splitlines()[-1])


def lm_eval_task(tasks: Iterable[str], questions_dir: Path) -> str:
    """Return the first multiple-choice task, which needs no generation; else the first task.

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
    """Evaluate a model directory on the first questions of a task with lm-eval's own command.

    The command is the one that a user types in the project folder. It runs in a fresh process that
    cannot import this project, offline, in a folder with nothing but the two directories.

    Args:
        directory: model directory of either layout, relative to the project folder.
        questions_dir: folder with TASK.yaml and its questions, relative to the project folder.
        task: name of the task.
        questions: maximum number of questions, from the first on.
        dtype: ``bfloat16`` or ``float32``.
        device: ``cpu`` or ``cuda``.
        fits: whether the model fits on the device; else lm-eval spreads it over GPUs and host
            memory.
    """
    model = f"pretrained={directory},dtype={dtype}"
    if "auto_map" in read_json(directory / "config.json"):  # its own model file, to be trusted
        model += ",trust_remote_code=True"
    if not fits:
        model += ",parallelize=True"
    arguments = ["--model", "hf", "--model_args", model]
    arguments += ["--tasks", task, "--include_path", str(questions_dir)]
    arguments += ["--limit", str(questions), "--batch_size", "1", "--device", device]
    with tempfile.TemporaryDirectory() as output:
        keep = ["--log_samples", "--output_path", output]
        result = run_isolated("-c", LM_EVAL, *arguments, *keep, links=(directory, questions_dir))
        answers: dict[str, Any] = {"metric": None, "accuracy": None, "correct": None}
        answers["questions"] = questions
        if result.returncode != 0:
            answers["reason"] = _failure(result)
        else:
            try:
                answers = _read_answers(Path(output), task)
            except (LookupError, TypeError, ValueError) as error:
                answers["reason"] = f"lm_eval's results cannot be read: {error!r}"
    return LmEvalAnswers(
        ok=answers["reason"] is None,
        command=shlex.join(["lm_eval", *arguments]),
        task=task,
        **answers,
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
    """Describe the widths that GPUs are slow at: those that are not multiples of `multiple`.

    A matrix that ends within a tile of the tensor cores costs the full tile (NVIDIA, Matrix
    Multiplication Background User's Guide, section 3). Rows that are not multiples of 16 bytes
    cannot be read by the fast kernels at all: on an H200 (bfloat16, torch 2.11), widths off by 32
    from a multiple of 64 cost about a tenth of a product's speed, widths off by 4 two thirds of it.

    Returns:
        At most one sentence each for MLP and attention.
    """
    layers = layers_of(model)
    mlp = [layer.neurons for layer in layers]
    attention = [layer.heads * layer.head_dim for layer in layers]
    kinds = (
        ("MLP width", mlp, f"set pruning.neuron_multiple to {multiple}"),
        (
            f"attention width (heads of {layers[0].head_dim} channels)",
            attention,
            "leave heads and kv_groups out of pruning.units, or choose another target",
        ),
    )
    warnings = []
    for name, widths, fix in kinds:
        bad = [width for width in widths if width % multiple]
        if not bad:
            continue
        different = sorted(set(bad))
        listed = ", ".join(map(str, different[:3]))
        if len(different) > 3:
            listed += f" and {len(different) - 3} more"
        # 16 bytes hold 8 numbers of 2 bytes.
        cost = "several times" if any(width % 8 for width in bad) else "a little"
        warnings.append(
            f"{name} {listed} in {len(bad)} of {len(widths)} layers is no multiple of {multiple}, "
            f"which GPUs run {cost} slower: {fix}"
        )
    return warnings


def run_isolated(*arguments: str, links: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh isolated process, offline, in an otherwise empty folder.

    Args:
        arguments: what follows ``python -I``: a file, or ``-c`` and code, and its arguments.
        links: relative paths to link in that folder, under the same names.

    Returns:
        The finished process; return code 1 if it took longer than `TIMEOUT`.
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


def _read_answers(output: Path, task: str) -> dict[str, Any]:
    """Return lm-eval's results below `output` as fields of `LmEvalAnswers`."""
    (aggregated,) = output.rglob("results_*.json")
    (answered,) = output.rglob(f"samples_{task}_*.jsonl")
    results = json.loads(aggregated.read_text(encoding="utf-8"))
    with answered.open(encoding="utf-8") as lines:
        samples = [json.loads(line) for line in lines]
    # With several filters, each answer is listed once per filter; use the first.
    name = samples[0]["filter"]
    samples = [sample for sample in samples if sample["filter"] == name]
    samples.sort(key=lambda sample: sample["doc_id"])
    config = results["configs"][task]
    metric = config["metadata"]["metric"]
    accuracy = results["results"][task][f"{metric},{name}"]
    reason = None
    if config["output_type"] == "multiple_choice":
        for sample in samples:
            if not all(math.isfinite(float(score)) for score, _ in sample["filtered_resps"]):
                reason = f"no finite likelihood on question {sample['doc_id'] + 1} of {task}"
                break
    return {
        "questions": len(samples),
        "metric": metric,
        "accuracy": accuracy if math.isfinite(accuracy) else None,
        "correct": [int(sample[metric]) for sample in samples],
        "reason": reason,
    }
