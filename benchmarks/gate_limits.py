"""Variation of the demo's results with the seed: the basis of the limits in configs/gates.yaml.

Runs the demo's stages up to the evaluation for several seeds (of documents and sequences), and once
for the negative control (random scores, no refit), each in its own workspace. Writes the result of
`compare` for each to benchmarks/results/gate_limits.json.

The data stages need the data packages; the others need a GPU, or half an hour per seed on two
cores. With --data, a folder stores the sampled data, so that both can run on different machines:

    python benchmarks/gate_limits.py --data FOLDER --draw
    python benchmarks/gate_limits.py --data FOLDER --dense data/checkpoints/dense --dtype float32
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# So that it also runs where the project is not installed.
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import machine
from pruneflow.artifacts import write_json
from pruneflow.judge.compare import compare
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.models.loading import resolve_device
from pruneflow.plan import load_profile
from pruneflow.records import read_record
from pruneflow.settings.pipeline import PipelineSettings, write_settings

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks/results/gate_limits.json"
DRAWN = ("benchmarks", "calibration")
DRAW = ("questions", "documents", "validate", "calibration")


def workspace(folder: Path, settings: PipelineSettings) -> None:
    """Create a project folder with the configs and the engine."""
    for name in ("configs", "pruneflow", "data/text"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", "data/sources.lock"):
        shutil.copy(ROOT / name, folder / name)
    write_settings(settings, folder / "configs/pipeline.yaml")


def run(folder: Path, *stages: str) -> None:
    """Run stages in a workspace."""
    for stage in stages:
        print(f"{folder.name}: {stage}", flush=True)
        subprocess.run([sys.executable, "-m", "pruneflow", "stage", stage], cwd=folder, check=True)


def draw(folder: Path, data: Path) -> None:
    """Copy questions and token blocks to a workspace; sample them if `data` does not have them."""
    stored = data / folder.name
    if not stored.is_dir():
        run(folder, *DRAW)
        for name in DRAWN:
            shutil.copytree(
                folder / "data" / name,
                stored / name,
                ignore=shutil.ignore_patterns("documents"),
                dirs_exist_ok=True,
            )
    for name in DRAWN:
        shutil.copytree(stored / name, folder / "data" / name, dirs_exist_ok=True)


def measure(folder: Path, settings: PipelineSettings) -> dict[str, Any]:
    """Prune, evaluate both models and compare them."""
    rounds = [f"round@{name}" for name in settings.rounds]
    run(folder, "baseline", *rounds, "select", "evaluation")
    dense, pruned = (
        read_record(Evaluation, folder / f"data/reports/{name}.json")
        for name in ("baseline", "evaluation")
    )
    return {
        "score": settings.pruning.score,
        "refit": settings.pruning.refit,
        "seed": settings.calibration.seed,
        **compare(dense, pruned, settings.evaluation).to_json(),
    }


def settings_by_name(seeds: list[int], dtype: str) -> dict[str, Any]:
    """The settings of the demo with every seed, and of the control, by name."""
    demo, control = load_profile("demo"), load_profile("control")
    found = {
        f"seed{seed}": demo.model_copy(
            update={
                "documents": demo.documents.model_copy(update={"seed": seed}),
                "calibration": demo.calibration.model_copy(update={"seed": seed}),
            }
        )
        for seed in seeds
    }
    found["control"] = control
    for name, settings in found.items():
        compute = settings.compute.model_copy(update={"dtype": dtype})
        found[name] = settings.model_copy(update={"compute": compute})
    return found


def main() -> None:
    """Measure the demo with each seed and the control once, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, help="folder that stores the sampled data")
    parser.add_argument("--draw", action="store_true", help="only sample the data")
    parser.add_argument("--dense", type=Path, help="output of the stage model, to reuse")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    data = None if given.data is None else given.data.absolute()
    dense = None if given.dense is None else given.dense.absolute()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(ROOT)
    by_name, results = settings_by_name(given.seeds, given.dtype), []
    with tempfile.TemporaryDirectory(prefix="gate-limits-") as name:
        for run_name, settings in by_name.items():
            folder = Path(name, run_name)
            workspace(folder, settings)
            if dense is None:
                run(folder, "model")
                dense = Path(
                    shutil.copytree(folder / "data/checkpoints/dense", Path(name, "dense"))
                )
            else:
                shutil.copytree(dense, folder / "data/checkpoints/dense")
            draw(folder, data or Path(name, "data"))
            if not given.draw:
                results.append(measure(folder, settings))
            shutil.rmtree(folder)
    if not given.draw:
        what = "demo profile by seed, then its negative control"
        facts = {**machine(resolve_device(settings.compute)), "matmul": "as torch's default"}
        write_json(given.out, {"what": what, "dtype": given.dtype, "runs": results, **facts})


if __name__ == "__main__":
    main()
