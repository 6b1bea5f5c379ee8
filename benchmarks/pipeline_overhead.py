"""Overhead of the pipeline over its stages: wall time, a run with nothing to do, bytes moved.

One run of a profile in a new workspace, started as by a user. Each stage's command is timed, so
that the stages and the total are of the same run; the difference is Prefect, DVC, MLflow and the
registry. Prefect's server starts with every run, and its start (from the message of the command to
the start of the flow) is reported separately. Then `dvc repro` with nothing to do, and each round
again by `dvc repro -s`, with the bytes that all processes read and wrote (Linux's /proc/self/io).
Run it on an otherwise idle machine.

    python benchmarks/pipeline_overhead.py [--profile demo] [--repeats 5] [--workspace FOLDER]
"""

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import machine
from pruneflow.artifacts import write_json
from pruneflow.models.digests import weight_file_bytes
from pruneflow.settings.pipeline import load_settings

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks/results/pipeline.json"
COPIED = ("configs", "pruneflow", "flows", "tasks", "data/text", "data/sources.lock", "dvc.yaml",
          ".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore",
          "mlflow/served_model.py")  # fmt: skip
STOPWATCH = """
import json, subprocess, sys, time
started = time.perf_counter()
code = subprocess.run([sys.executable, "-m", "pruneflow", "stage", sys.argv[1]]).returncode
with open("stages.jsonl", "a") as file:
    print(json.dumps([sys.argv[1], time.perf_counter() - started]), file=file)
sys.exit(code)
"""
BYTES = """
import json, subprocess, sys
code = subprocess.run([sys.executable, "-m", "dvc", *sys.argv[1:]], stdout=sys.stderr).returncode
lines = open("/proc/self/io").read().splitlines()
print(json.dumps({key: int(value) for key, value in (line.split(": ") for line in lines)}))
sys.exit(code)
"""


def make_workspace(folder: Path, profile: str) -> dict[str, str]:
    """Create a project folder with timed stages; returns its environment."""
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "stopwatch.py").write_text(STOPWATCH)
    (folder / "bytes.py").write_text(BYTES)
    graph = (folder / "dvc.yaml").read_text()
    timed = graph.replace("python -m pruneflow stage", "python stopwatch.py")
    (folder / "dvc.yaml").write_text(timed)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    # As in most users' shells: bytecode is cached, not compiled by every stage.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    run(folder, environment, "-m", "flows.cli", "configure", profile)
    return environment


def run(folder: Path, environment: dict[str, str], *command: str) -> tuple[float, str]:
    """Run `python COMMAND` in the workspace; returns seconds and stdout."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return time.perf_counter() - started, done.stdout


def complete_run(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Time of one `pruneflow run`, of its stages, and of Prefect's start."""
    (folder / "stages.jsonl").unlink(missing_ok=True)
    log: list[str] = []
    starting = None
    launched = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if line.startswith("starting Prefect"):
                starting = datetime.now(UTC)
    seconds = time.perf_counter() - launched
    (folder / "run.log").write_text("".join(log))
    # A run refused by the gates counts, too.
    if process.returncode not in (0, 1) or starting is None:
        raise SystemExit(f"the run ended with {process.returncode}:\n{''.join(log[-30:])}")
    start = (_flow_start(folder) - starting).total_seconds()
    stages = dict(map(json.loads, (folder / "stages.jsonl").read_text().splitlines()))
    bare = sum(stages.values())
    return {
        "seconds": seconds,
        "prefect_start_seconds": start,
        "stages": stages,
        "stages_seconds": bare,
        "overhead": (seconds - start - bare) / bare,
    }


def _flow_start(folder: Path) -> datetime:
    """Start of the last flow run of the workspace's Prefect."""
    with closing(sqlite3.connect(folder / ".pruneflow/prefect/prefect.db")) as database:
        (found,) = database.execute("SELECT max(start_time) FROM flow_run").fetchone()
    return datetime.fromisoformat(found).replace(tzinfo=UTC)


def rounds(
    folder: Path, environment: dict[str, str], names: list[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Run each round again by DVC: bytes read and written by all processes, and per model byte."""
    idle = json.loads(run(folder, environment, "bytes.py", "repro", "-s", "validate")[1])
    for name in names:
        output = run(folder, environment, "bytes.py", "repro", "-f", "-s", f"round@{name}")[1]
        moved = json.loads(output)
        size = weight_file_bytes(folder / "data/checkpoints" / name)
        yield (
            name,
            {
                "model_bytes": size,
                "read": moved["rchar"] - idle["rchar"],
                "written": moved["wchar"] - idle["wchar"],
                "read_over_model": (moved["rchar"] - idle["rchar"]) / size,
                "written_over_model": (moved["wchar"] - idle["wchar"]) / size,
            },
        )


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--repeats", type=int, default=5, help="of `dvc repro` with nothing to do")
    parser.add_argument("--workspace", type=Path, help="an empty folder to use and keep")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    keep = nullcontext(given.workspace) if given.workspace else tempfile.TemporaryDirectory()
    with keep as name:
        folder = Path(name).resolve()
        environment = make_workspace(folder, given.profile)
        settings = load_settings(folder / "configs/pipeline.yaml")
        result: dict[str, Any] = {
            "what": "overhead of the pipeline over its stages, nothing to do, bytes of a round",
            "profile": given.profile,
            "machine": machine("cpu"),
            "run": complete_run(folder, environment),
        }
        write_json(given.out, result)
        idle = [run(folder, environment, "-m", "dvc", "repro")[0] for _ in range(given.repeats)]
        result["nothing_to_do"] = {"seconds": idle, "median": statistics.median(idle)}
        write_json(given.out, result)
        result["rounds"] = {}
        for name, moved in rounds(folder, environment, list(settings.rounds)):
            result["rounds"][name] = moved
            write_json(given.out, result)
    print(json.dumps(result, indent=2))
    median = result["nothing_to_do"]["median"]
    print(f"overhead {result['run']['overhead']:.1%} (at most 5 %)")
    print(f"nothing to do {median:.1f} s (at most 5 s)")


if __name__ == "__main__":
    main()
