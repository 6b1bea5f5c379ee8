"""How much the demo's figures vary with the seed: the ground for the limits in configs/gates.yaml.

Runs the demo's stages up to the evaluation for three seeds (which documents, which sequences), and
once for the negative control (random scores, no refit), in a workspace of its own; baseline and
questions are the same for all. Writes benchmarks/results/gate_limits.json.

    python benchmarks/gate_limits.py [--seeds 0 1 2]
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pruneflow.config import PipelineSettings, write_settings
from pruneflow.evaluation.retention import (
    geometric_mean,
    perplexity_ratios,
    retention,
    worst_ratio,
)
from pruneflow.plan import load_profile

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks/results/gate_limits.json"


def workspace(folder: Path) -> None:
    """A project folder with the graph, the configs and the engine, under DVC without git."""
    for name in ("configs", "pruneflow", "data/text"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", "data/sources.lock"):
        shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")


def measure(folder: Path, settings: PipelineSettings) -> dict[str, Any]:
    """Run the stages and compare the pruned model with the dense one."""
    write_settings(settings, folder / "configs/pipeline.yaml")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "dvc", "repro", "baseline", "evaluation"]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PATH": path})
    dense, pruned = (
        json.loads((folder / f"data/reports/{name}.json").read_text())
        for name in ("baseline", "evaluation")
    )
    ratios = perplexity_ratios(dense["perplexity"], pruned["perplexity"])
    samples, seed = settings.evaluation.bootstrap_samples, settings.evaluation.seed
    return {
        "score": settings.pruning.score,
        "refit": settings.pruning.refit,
        "seed": settings.calibration.seed,
        "block_ratio": 1 - pruned["model"]["block_weights"] / dense["model"]["block_weights"],
        "perplexity_ratio": ratios,
        "perplexity_ratio_mean": geometric_mean(ratios),
        "perplexity_ratio_worst": worst_ratio(ratios),
        "tasks": {
            task: retention(dense["tasks"][task]["correct"], facts["correct"], samples, seed)
            for task, facts in pruned["tasks"].items()
        },
    }


def main() -> None:
    """Measure the demo for each seed and the control once, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    os.chdir(ROOT)
    demo, control = load_profile("demo"), load_profile("control")
    runs = [
        demo.model_copy(
            update={
                "documents": demo.documents.model_copy(update={"seed": seed}),
                "calibration": demo.calibration.model_copy(update={"seed": seed}),
            }
        )
        for seed in seeds
    ]
    results = []
    with tempfile.TemporaryDirectory(prefix="gate-limits-") as name:
        workspace(Path(name))
        for settings in [*runs, control]:
            results.append(measure(Path(name), settings))
            print(json.dumps(results[-1], indent=2), flush=True)
    packages = ("torch", "transformers", "lm-eval")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps(
            {
                "what": "demo profile by seed, then its negative control",
                "runs": results,
                "versions": {
                    "python": platform.python_version(),
                    **{package: version(package) for package in packages},
                },
                "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
