"""The parts of docs/benchmarks.md on speed, and on two cores at home."""

from collections.abc import Iterator
from statistics import median
from typing import Any

from docs.tables import machine_line, table

SPEED = """Dense and pruned in turn (`benchmarks/speed.py`). The ideal speed-up is the ratio of
the least times, operations or bytes over what the machine does in a large product or a long
read, head and attention included; the share is (speed-up - 1) / (ideal - 1). Aligned widths are
multiples of 64, unaligned ones have one neuron more, `heads` cuts KV groups with their query
heads as far as whole groups go. In brackets what people quote, 1 / (1 - ratio).
"""


def speed(title: str, found: dict[str, Any]) -> Iterator[str]:
    """Of benchmarks/results/speed_gpu.json or speed_cpu.json."""
    model, settings, facts = found["model"], found["settings"], found["machine"]
    yield f"### {title}\n"
    yield (
        f"{_model(model)}, {model['layers']} layers in {model['dtype']}, prompts of "
        f"{settings['prompt']} tokens and {settings['new_tokens']} more, plain transformers, "
        f"medians of {settings['repeats']} runs of each, which were {_apart(found['rows']):.0%} "
        "apart in the middle case. "
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
    """How far the slowest run of the same was behind the quickest, the median of all rows."""
    times = [row["seconds"] for row in rows if "left_out" not in row]
    return median(max(same) / min(same) - 1 for same in times)


def _model(model: dict[str, Any]) -> str:
    return "SmolLM2-135M-Instruct" if "smollm2" in model["source"] else model["source"].capitalize()


def _tokens(rows: list[dict[str, Any]], batches: list[int]) -> list[str]:
    """The dense model's tokens a second."""
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
    """What eats the rest at the largest batch, in per cent of the dense time."""
    largest = max((row["batch"] for row in found["parts"]), default=None)
    if largest is None:
        return
    rows = [row for row in found["parts"] if row["batch"] == largest]
    parts = list(rows[0]["parts"])
    yield (
        f"What eats the rest at batch {largest} and 50 %, timed part by part, in per cent of the "
        "dense model's time: what a part takes of it, and how much more than its share of the "
        "ideal time a pruned model spends in it. Timing a part waits for the device before and "
        "after it, which takes away what overlaps and changes the speed-up: the last columns have "
        "it with and without waiting. Where they are far apart, the parts explain the first.\n"
    )
    plain = {
        (row["phase"], row["variant"]): row["speedup"]
        for row in found["rows"]
        if row["batch"] == largest and "left_out" not in row
    }
    shown = [row for row in rows if not row["variant"].endswith("20%")]
    yield from table(
        ["", *parts, "waiting", "not waiting"],
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
    """Of benchmarks/results/home.json."""
    settings = found["settings"]
    yield "## At home\n"
    yield (
        f"SmolLM2-135M-Instruct, {settings['ratio']:.0%} in {settings['rounds']} rounds on "
        f"{found['threads']} cores in {settings['dtype']}, {settings['sequences']} sequences of "
        f"{settings['length']} tokens, from disk to disk (`benchmarks/home.py`): "
        f"{found['seconds'] / 60:.1f} minutes, at most {found['peak_gb']:.2f} GB of memory "
        f"({found['imports_gib']:.2f} GiB of it Python and its libraries). A round took "
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
        "Scoring is `forward` (every block twice, with the losses and sums) and `backward`; the "
        "refit is `streams`, `gram` and `solve`. "
        f"{machine_line(found['machine'])}.\n"
    )
