"""The parts of docs/benchmarks.md on speed, and on a run on two cores."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from docs.tables import machine_line, table

SPEED = """The dense and the pruned model are timed in turn (`benchmarks/speed.py`). The ideal
speed-up is the ratio of the shortest possible times: operations or bytes, including head and
attention, divided by the machine's speed in a large matrix product or a long read. The percentage
is (speed-up - 1) / (ideal - 1). Aligned widths are multiples of 64, unaligned widths have one
neuron more, and `heads` removes KV groups with their query heads, as far as entire groups allow.
In brackets, the commonly quoted 1 / (1 - ratio).
"""


def speed(title: str, found: dict[str, Any]) -> Iterator[str]:
    """From benchmarks/results/speed_gpu.json or speed_cpu.json."""
    model, settings, facts = found["model"], found["settings"], found["machine"]
    yield f"### {title}\n"
    yield (
        f"{_model(model)}, {model['layers']} layers in {model['dtype']}, prompts of "
        f"{settings['prompt']} tokens and {settings['new_tokens']} new tokens, plain "
        f"transformers, medians of {settings['repeats']} repeats, whose median spread was "
        f"{_apart(found['rows']):.0%}. "
        f"{machine_line(facts)}; {facts['speed']['flops'] / 1e12:.2f} TFLOP/s, "
        f"{facts['speed']['bytes'] / 1e9:,.0f} GB/s.\n"
    )
    variants = [variant for variant in found["variants"] if variant != "dense"]
    for phase in ("prefill", "decode"):
        rows = [row for row in found["rows"] if row.get("phase") == phase]
        batches = sorted({row["batch"] for row in rows})
        yield from table(
            [phase, *(f"batch {batch}" for batch in batches)],
            [
                _tokens(rows, batches),
                *(_speeds(variant, rows, batches, found["variants"]) for variant in variants),
            ],
        )
    yield from (
        f"Batch {row['batch']} was left out: {row['left_out']}.\n"
        for row in found["rows"]
        if "left_out" in row
    )
    yield from _eaten(found)


def _apart(rows: list[dict[str, Any]]) -> float:
    """The slowest repeat over the fastest, minus 1: the median of all rows."""
    times = [row["seconds"] for row in rows if "left_out" not in row]
    return median(max(same) / min(same) - 1 for same in times)


def _model(model: dict[str, Any]) -> str:
    return "SmolLM2-135M-Instruct" if "smollm2" in model["source"] else model["source"].capitalize()


def _tokens(rows: list[dict[str, Any]], batches: list[int]) -> list[str]:
    """Tokens per second of the dense model."""
    found = {row["batch"]: row["tokens_per_second"] for row in rows if row["variant"] == "dense"}
    return ["dense, tokens/s", *(f"{found[batch]:,.0f}" for batch in batches)]


def _speeds(
    variant: str, rows: list[dict[str, Any]], batches: list[int], variants: dict[str, Any]
) -> list[str]:
    cells = [f"{variant} ({variants[variant]['ideal_by_block_weights']:.2f})"]
    for batch in batches:
        row = next(r for r in rows if r["variant"] == variant and r["batch"] == batch)
        share = f"{row['share']:.0%}" if row["speedup"] >= 1 else "slower"
        cells.append(f"{row['speedup']:.2f} of {row['ideal']:.2f}: {share}")
    return cells


def _eaten(found: dict[str, Any]) -> Iterator[str]:
    """Where the missing speed-up goes at the largest batch, in per cent of the dense time."""
    largest = max((row["batch"] for row in found["parts"]), default=None)
    if largest is None:
        return
    rows = [row for row in found["parts"] if row["batch"] == largest]
    parts = list(rows[0]["parts"])
    yield (
        f"Where the missing speed-up goes at batch {largest} and 50 %, in per cent of the dense "
        "model's time. The dense row shows how much time each part takes; the other rows show how "
        "much more time a pruned model spends in it than its share of the ideal time. Timing a "
        "part waits for the device before and after it, which removes overlap and changes the "
        "speed-up: the last two columns show the speed-up with and without waiting. Where they "
        "differ much, the parts explain the one with waiting.\n"
    )
    plain = {
        (row["phase"], row["variant"]): row["speedup"]
        for row in found["rows"]
        if row["batch"] == largest and "left_out" not in row
    }
    shown = [row for row in rows if not row["variant"].endswith("20%")]
    yield from table(
        ["", *parts, "with waiting", "without"],
        [
            [
                *_part_shares(row),
                f"{row['speedup']:.2f}",
                f"{plain[row['phase'], row['variant']]:.2f}",
            ]
            for row in shown
        ],
    )


def _part_shares(row: dict[str, Any]) -> list[str]:
    figure = "of_dense" if row["variant"] == "dense" else "eats"
    return [
        f"{row['phase']}, {row['variant']}",
        *(str(round(100 * part[figure])) for part in row["parts"].values()),
    ]


def home(found: dict[str, Any]) -> Iterator[str]:
    """From benchmarks/results/home.json."""
    settings = found["settings"]
    yield "## Two cores, from disk to disk\n"
    yield (
        f"SmolLM2-135M-Instruct, {settings['ratio']:.0%} in {settings['rounds']} rounds on "
        f"{found['threads']} cores in {settings['dtype']}, {settings['sequences']} sequences of "
        f"{settings['length']} tokens, loading and saving included (`benchmarks/home.py`): "
        f"{found['seconds'] / 60:.1f} minutes, a peak of {found['peak_gb']:.2f} GB of memory "
        f"({found['imports_gib']:.2f} GiB of it for Python and its libraries). A round took "
        f"{median(sum(one['seconds'].values()) for one in found['rounds']):.0f} s.\n"
    )
    parts = found["shares"]
    yield from table(
        ["", *parts],
        [
            ["share of time", *(f"{share:.0%}" for share in parts.values())],
            ["seconds", *(f"{found['seconds_by_part'][part]:.0f}" for part in parts)],
        ],
    )
    yield (
        "Scoring consists of `forward` (every block twice, with losses and sums) and `backward`; "
        "the refit of `streams`, `gram` and `solve`. "
        f"{machine_line(found['machine'])}.\n"
    )
