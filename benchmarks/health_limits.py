"""Drift of pruned models from the dense one, which the limits of `HealthSettings` are based on.

Ten rounds up to a ratio of 60 %, with all health measures after each: with the method in both
layouts, and with three recipes that are expected to break (no refit, random scores, and both: the
control). On bench-v1 (192 sequences of 512 tokens, measured on its held-out sets) or, with --set,
on the calibration set of a workspace (measured on its validation split). Results are added to
benchmarks/results/health_limits.json after each recipe, and an interrupted command resumes. Use a
GPU: there both texts take five minutes with the five recipes in parallel (each with its --recipes
and --out); on two cores they take hours.

    python benchmarks/health_limits.py
    python benchmarks/health_limits.py --set data/calibration/set --ridge 0.05
"""

import argparse
import copy
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

# So that it also runs where the project is not installed.
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import bench_v1
from benchmarks.machine import load, machine
from benchmarks.quality import SMOLLM2
from pruneflow.artifacts import read_json, sha256_file, write_json
from pruneflow.errors import InputError
from pruneflow.judge.health import check_round, knee
from pruneflow.measure.drift import compare_models
from pruneflow.models.loading import resolve_device
from pruneflow.models.structure import dense_reference
from pruneflow.pruning.rounds import prune_round
from pruneflow.pruning.schedule import targets
from pruneflow.settings.pipeline import ComputeSettings, HealthSettings
from pruneflow.settings.pruning import PruningSettings, Target

RESULT = Path(__file__).parent / "results/health_limits.json"
RANDOM = {"score": "random", "also_score": []}
NO_REFIT = {"refit": "none", "towards_dense": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "uniform": {"layout": "uniform"},
    "per_layer": {"layout": "per_layer"},
    "no_refit": {"layout": "uniform", **NO_REFIT},
    "random": {"layout": "uniform", **RANDOM},
    "control": {"layout": "uniform", **RANDOM, **NO_REFIT},
}


def texts(arguments: argparse.Namespace, tokenizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Calibration windows and evaluation windows, by domain."""
    if arguments.set is None:
        text = bench_v1.read_bench(arguments.data, tokenizer)
        seed = arguments.seed
        calibration = bench_v1.calibration_blocks(text, 192, 512, seed, bench_v1.DOMAINS)
        return calibration, bench_v1.held_out_windows(text, 8, 512)
    counts = read_json(arguments.set / "manifest.json")["mixture"]["counts"]
    found: dict[str, dict[str, Any]] = {"calibration": {}, "validation": {}}
    for name, tensor in sorted(load_file(arguments.set / "blocks.safetensors").items()):
        split, domain = name.split("/", 1)
        if split in found:
            found[split][domain] = tensor.long()
    calibration = {name: rows[: counts[name]] for name, rows in found["calibration"].items()}
    return calibration, found["validation"]


def prune_in_rounds(
    dense: Any,
    blocks: dict[str, Any],
    windows: dict[str, Any],
    recipe: dict[str, Any],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """The health measures of each round, and the knee."""
    settings, batch_tokens = PruningSettings(**recipe), arguments.batch_tokens
    shape, model, records = dense_reference(dense), copy.deepcopy(dense), []
    goals = targets(Target(ratio=arguments.ratio), arguments.rounds, "linear")
    for number, target in enumerate(goals, start=1):
        start = time.perf_counter()
        result = prune_round(
            model,
            blocks,
            target,
            shape,
            settings,
            batch_tokens=batch_tokens,
            backward_batch_tokens=max(1, batch_tokens // 2),
            label=f"r{number}",
        )
        model, pruned = result.model, time.perf_counter()
        validation, drift = compare_models(dense, model, windows, batch_tokens, f"r{number} drift")
        health = check_round(validation, drift, HealthSettings())
        records.append(
            {
                "round": f"r{number}",
                "achieved_ratio": result.achieved_ratio,
                "seconds": {
                    "prune": round(pruned - start, 1),
                    "measure": round(time.perf_counter() - pruned, 1),
                },
                **health.model_dump(exclude={"healthy", "reasons", "reason"}),
            }
        )
        _print(records[-1])
    points = [(record["achieved_ratio"], math.log(record["mean_ratio"])) for record in records]
    index = knee(points)
    return {"rounds": records, "knee": None if index is None else records[index]["round"]}


def _print(record: dict[str, Any]) -> None:
    print(
        f"{record['round']:4} {record['achieved_ratio']:.3f}  ratio {record['mean_ratio']:.3g} "
        f"worst {record['worst_ratio']:.3g}  KL {record['kl']:.3f}  "
        f"top-1 {record['top1_agreement']:.3f}  repetition {record['repetition']['rise']:+.3f}  "
        f"entropy {record['entropy_drift']:+.3f}  norm {record['norm_drift']:.3f} "
        f"(layer {record['norm_layer']})",
        flush=True,
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure the requested recipes, and write the results after each."""
    device = resolve_device(ComputeSettings(device=arguments.device))
    dense, tokenizer = load(arguments.model, arguments.dtype, device)
    blocks, windows = texts(arguments, tokenizer)
    text = (
        "bench-v1" if arguments.set is None else sha256_file(arguments.set / "blocks.safetensors")
    )
    setup = {
        "model": Path(arguments.model).name,
        "dtype": arguments.dtype,
        "text": text,
        "seed": arguments.seed,
        "rounds": arguments.rounds,
        "ratio": arguments.ratio,
        "calibration": {domain: list(rows.shape) for domain, rows in blocks.items()},
        "windows": {domain: list(rows.shape) for domain, rows in windows.items()},
    }
    results = read_json(arguments.out) if arguments.out.exists() else {"runs": []}
    found = next((run for run in results["runs"] if run["setup"] == setup), None)
    if found is None:
        found = {"setup": setup, "descents": {}}
        results["runs"].append(found)
    for name in arguments.recipes:
        if name in found["descents"]:
            continue
        print(f"{name} on {text[:12]}", flush=True)
        recipe = {**RECIPES[name], "seed": arguments.seed, "ridge": arguments.ridge}
        found["descents"][name] = {
            "recipe": recipe,
            "machine": machine(device),
            **prune_in_rounds(dense, blocks, windows, recipe, arguments),
        }
        write_json(arguments.out, results)
        print(f"knee {found['descents'][name]['knee']}", flush=True)


def main() -> int:
    """Run, and print errors as one line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--recipes", choices=list(RECIPES), nargs="+", default=list(RECIPES))
    add("--model", default=SMOLLM2, help="as model.source in the settings")
    add("--data", type=Path, default=bench_v1.DATA, help="folder of bench-v1")
    add("--set", type=Path, help="folder of a calibration set, instead of bench-v1")
    add("--out", type=Path, default=RESULT)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--seed", type=int, default=0, help="for sampling calibration sequences and for scores")
    add("--rounds", type=int, default=10)
    add("--ratio", type=float, default=0.6)
    add("--ridge", type=float, default=0.01)
    add("--batch-tokens", type=int, default=8192)
    try:
        run(parser.parse_args())
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
