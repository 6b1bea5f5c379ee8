"""Questions per second of pruneflow and plain lm_eval, and whether their answers agree.

One process, one loaded model per data type, the same task files and questions. The time of every
method includes reading task files and scoring answers; starting Python and loading the weights is
excluded, which is the same for all. The methods take turns, each repeat starts with another one,
and a warm-up is not timed. For generative tasks, as many texts are compared as a report shows.
Plain lm_eval has the defaults of its command: its log-softmax has the model's data type, so in
bfloat16 the method `lm_eval 1 float32 softmax` shows the effect of that alone. Its batch size
`auto` starts with 64 rows of the model's full context, which does not fit a CPU's memory: it is
measured on GPUs only, and not for generation, where finding the size takes most of the time.

    python benchmarks/evaluation_speed.py [--questions 10] [--repeats 3] [--dtypes float32 bfloat16]
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

# So that it also runs where the project is not installed.
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import machine
from pruneflow.artifacts import read_json, write_json, write_manifest
from pruneflow.models.loading import load_model, resolve_device
from pruneflow.questions.answers import SHOWN_ANSWERS, answer_questions
from pruneflow.questions.task_files import quiet
from pruneflow.settings.base import read_yaml
from pruneflow.settings.pipeline import ComputeSettings

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks/results/evaluation.json"
OURS, ONE_BY_ONE, REFERENCE = "pruneflow", "pruneflow, 1 token", "lm_eval 1"
KINDS = ("multiple_choice", "generate_until")


class Answers(NamedTuple):
    """Answers to the questions of one task.

    Attributes:
        correct: 1 or 0 for each question.
        texts: the first generated texts, in generative tasks.
    """

    correct: list[int]
    texts: list[str]


Found = dict[str, Answers]


def select(benchmarks: Path, kind: str, questions: int, out: Path) -> dict[str, int]:
    """Copy the first questions of each task of one output type; returns their numbers."""
    manifest = read_json(benchmarks / "manifest.json")
    counts = {}
    out.mkdir()
    for path in sorted(benchmarks.glob("*.yaml")):
        if read_yaml(path)["output_type"] == kind:
            shutil.copy(path, out)
            lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines(True)
            first = "".join(lines[:questions])
            (out / f"{path.stem}.jsonl").write_text(first, encoding="utf-8")
            counts[path.stem] = min(questions, len(lines))
    facts = {task: manifest["tasks"][task] for task in counts}
    write_manifest(out, seed=manifest["seed"], tasks=facts)
    return counts


def plain(
    model: Any, tokenizer: Any, benchmarks: Path, batch_size: int | str, softmax: str | None = None
) -> Found:
    """Answers of lm-eval's own model class."""
    configs, metrics = [], {}
    with quiet(), tempfile.TemporaryDirectory() as cache:
        for path in sorted(benchmarks.glob("*.yaml")):
            config = read_yaml(path)
            questions = str(path.with_suffix(".jsonl").resolve())
            config["dataset_kwargs"] = {"data_files": {"test": questions}, "cache_dir": cache}
            metrics[path.stem] = config["metadata"]["metric"]
            configs.append(config)
        lm = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=softmax
        )
        results = evaluate(
            lm=lm,
            task_dict=TaskManager(include_defaults=False).load(configs),
            log_samples=True,
            bootstrap_iters=0,
        )
    found = {}
    for task, unsorted in results["samples"].items():
        samples = sorted(unsorted, key=lambda sample: sample["doc_id"])
        written = samples[0]["arguments"] and "until" in str(samples[0]["arguments"][0][1])
        found[task] = Answers(
            [int(sample[metrics[task]]) for sample in samples],
            [sample["resps"][0][0] for sample in samples[:SHOWN_ANSWERS]] if written else [],
        )
    return found


def methods(
    model: Any, tokenizer: Any, benchmarks: Path, compute: ComputeSettings, kind: str
) -> dict[str, Callable[[], Found]]:
    """The methods to compare, by name."""

    def ours(batch_tokens: int) -> Found:
        found = answer_questions(model, tokenizer, benchmarks, batch_tokens)
        return {
            task: Answers(facts["correct"], facts.get("answers", []))
            for task, facts in found.items()
        }

    sizes: list[int | str] = [1, 8, 16]
    if model.device.type == "cuda" and kind == "multiple_choice":
        sizes.append("auto")
    result: dict[str, Callable[[], Found]] = {
        OURS: lambda: ours(compute.batch_tokens),
        **{f"lm_eval {n}": lambda n=n: plain(model, tokenizer, benchmarks, n) for n in sizes},
        ONE_BY_ONE: lambda: ours(1),
    }
    if compute.dtype != "float32":
        result["lm_eval 1 float32 softmax"] = lambda: plain(
            model, tokenizer, benchmarks, 1, "float32"
        )
    return result


def compare(compared: dict[str, Callable[[], Found]], repeats: int) -> dict[str, Any]:
    """Run the methods in turn; returns seconds, questions per second and differing answers."""
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    answers: dict[str, Found] = {}
    names = list(compared)
    compared[OURS]()
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            start = time.perf_counter()
            answers[name] = compared[name]()
            seconds[name].append(time.perf_counter() - start)
            print(f"  repeat {repeat + 1}: {name}: {seconds[name][-1]:.1f} s", flush=True)
    asked = sum(len(found.correct) for found in answers[OURS].values())
    return {
        name: {
            "seconds": taken,
            "questions_per_second": asked / statistics.median(taken),
            # Paired by repeat, so that load on the machine affects both.
            "times_slower_than_pruneflow": statistics.median(
                mine / ours for mine, ours in zip(taken, seconds[OURS], strict=True)
            ),
            "correct": {task: sum(found.correct) for task, found in answers[name].items()},
            "questions_otherwise_than": {
                other: different(answers[name], answers[other])
                for other in (REFERENCE, "lm_eval 1 float32 softmax")
                if other in answers
            },
        }
        for name, taken in seconds.items()
    }


def different(one: Found, other: Found) -> int:
    """Number of questions that two methods answer or score differently."""
    count = 0
    for task, first in one.items():
        second = other[task]
        pairs: Any = zip(first.texts or first.correct, second.texts or second.correct, strict=True)
        count += sum(a != b for a, b in pairs)
    return count


def main() -> None:
    """Measure every data type and output type, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "data/checkpoints/dense")
    parser.add_argument("--benchmarks", type=Path, default=ROOT / "data/questions")
    parser.add_argument("--questions", type=int, default=10, help="maximum per task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    device = resolve_device(ComputeSettings(device=given.device))
    facts = machine(device)
    facts["versions"]["lm-eval"] = version("lm-eval")
    runs: list[dict[str, Any]] = []
    result = {
        "what": "questions per second of pruneflow and plain lm_eval",
        "model": read_json(given.model / "round.json")["digest"],
        "seed": read_json(given.benchmarks / "manifest.json")["seed"],
        "runs": runs,
        "machine": {**facts, "threads": torch.get_num_threads()},
    }
    for dtype in given.dtypes:
        compute = ComputeSettings(dtype=dtype, device=given.device)
        model, tokenizer = load_model(given.model, compute)
        for kind in given.kinds:
            print(f"{dtype}, {kind}", flush=True)
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name, "benchmarks")
                asked = select(given.benchmarks, kind, given.questions, folder)
                found = compare(methods(model, tokenizer, folder, compute, kind), given.repeats)
            run = {"dtype": dtype, "kind": kind, "tasks": asked, "methods": found}
            runs.append({**run, "batch_tokens": compute.batch_tokens})
            write_json(given.out, result)
            print(json.dumps(found, indent=2), flush=True)


if __name__ == "__main__":
    main()
