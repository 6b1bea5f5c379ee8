"""Scaling of a round's cost with tokens, width and depth: four sizes of each, and the exponent.

A Llama with random weights is made wider, deeper, or given more text, with everything else equal.
The exponent is the slope of a line fitted to the four points on logarithmic axes; 1 means
proportional. The width scales hidden size, neurons and heads, so the weights of a block grow with
its square, and the operations of the solve with its cube.

    python benchmarks/growth.py
"""

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.cost import Case, RunSettings, measure
from benchmarks.machine import machine
from benchmarks.operations import Shape
from pruneflow.artifacts import write_json

RESULT = Path(__file__).parent / "results/growth.json"
HEAD_DIM = 128


def shape(hidden: int, layers: int) -> Shape:
    """A Llama of this width with 8/3 as many neurons, as in 7B, rounded to a multiple of 256."""
    neurons = -(-hidden * 8 // 3 // 256) * 256
    return Shape(layers, hidden, neurons, hidden // HEAD_DIM, hidden // HEAD_DIM)


def cases(width: int, depth: int, sequences: int) -> dict[str, dict[int, Case]]:
    """Four sizes of each kind, starting with the base."""

    def case(name: str, hidden: int, layers: int, count: int) -> Case:
        return Case(name, shape(hidden, layers), layers, count)

    return {
        "tokens": {
            step * sequences: case("tokens", width, depth, step * sequences)
            for step in (1, 2, 4, 8)
        },
        "width": {
            step * width: case("width", step * width, depth, sequences) for step in (1, 2, 3, 4)
        },
        "depth": {
            step * depth: case("depth", width, step * depth, sequences) for step in (1, 2, 4, 8)
        },
    }


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log(seconds) over log(sizes), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    """Measure every size, after a small warm-up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048, help="hidden size of the base")
    parser.add_argument("--depth", type=int, default=8, help="its layers")
    parser.add_argument("--sequences", type=int, default=96, help="of 512 tokens")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    settings = RunSettings(rounds=1, dtype=given.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result: dict[str, Any] = {"machine": machine(device), "how": settings._asdict(), "growth": {}}
    measure(Case("warm-up", shape(given.width, 2), 2, 12), settings)
    for kind, sizes in cases(given.width, given.depth, given.sequences).items():
        found = {}
        for size, case in sizes.items():
            measured = measure(case, settings)
            found[size] = {
                **measured["seconds_by_round"][0],
                "peak_gib": measured["peak_gib"],
                "weights_gib": measured["weights_gib"],
            }
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
        phases = ("score", "equations", "solve", "all")
        result["growth"][kind] = {
            "sizes": {str(size): values for size, values in found.items()},
            "exponent": {
                phase: exponent(list(found), [values[phase] for values in found.values()])
                for phase in phases
            },
        }
        print(kind, json.dumps(result["growth"][kind]["exponent"]), flush=True)
        write_json(given.out, result)


if __name__ == "__main__":
    main()
