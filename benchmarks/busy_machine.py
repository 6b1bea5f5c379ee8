"""Speed of forward passes on a quiet and on a busy machine, by how OpenMP's threads wait.

Each setting is a fresh process, because OpenMP reads its variables when it is loaded. A busy
machine has as many other processes at work as it has cores. Settings take turns, `repeats` times;
a figure is the median of tokens per second, with the lowest and the highest.

    python benchmarks/busy_machine.py
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
PASS = """
import sys, time
import torch
from benchmarks.cost import random_model
from benchmarks.operations import SHAPES
model = random_model(SHAPES["0.1b"], 12, "float32", "cpu").eval()
tokens = torch.zeros(1, int(sys.argv[1]), dtype=torch.long)
with torch.inference_mode():
    model(input_ids=tokens)
    started, passes = time.perf_counter(), 0
    while passes < 3 or time.perf_counter() - started < float(sys.argv[2]):
        model(input_ids=tokens)
        passes += 1
print(passes * tokens.numel() / (time.perf_counter() - started))
"""


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/busy_machine.json"))
    arguments = parser.parse_args()
    from benchmarks.machine import machine

    record = {**machine("cpu"), "tokens": arguments.tokens, "repeats": arguments.repeats}
    for name, others in (("quiet", 0), ("busy", os.cpu_count() or 1)):
        processes = [multiprocessing.Process(target=work, daemon=True) for _ in range(others)]
        for process in processes:
            process.start()
        speeds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
        for _ in range(arguments.repeats):
            for setting, changes in SETTINGS.items():
                speeds[setting].append(speed(changes, arguments.tokens, arguments.seconds))
        for process in processes:
            process.terminate()
        record[name] = {
            setting: {"median": median(found), "low": min(found), "high": max(found)}
            for setting, found in speeds.items()
        }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def speed(changes: dict[str, str], tokens: int, seconds: float) -> float:
    """Tokens per second of forward passes in a process of its own."""
    left = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in left}
    done = subprocess.run(
        [sys.executable, "-c", PASS, str(tokens), str(seconds)],
        env={**environment, **changes},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def work() -> None:
    """Keep a core at work until the process is terminated."""
    while True:
        time.monotonic()


if __name__ == "__main__":
    main()
