"""The part of docs/benchmarks.md on what a round costs, and how that grows."""

from collections.abc import Iterator
from typing import Any

from benchmarks.operations import RATIO, shares_of_limit
from docs.tables import machine_line, table

PHASES = ("score", "equations", "solve")


def cost(found: dict[str, Any]) -> Iterator[str]:
    """From benchmarks/results/cost.json."""
    yield "## What a round costs\n"
    first = found["cases"][0]
    limits = first["limits_tflops"]
    yield (
        f"Llama-shaped models with random weights in {first['dtype']}, sequences of "
        f"{first['length']} tokens, {first['batch_tokens']:,} tokens per batch "
        "(`benchmarks/cost.py`). The last three columns are the share of the hardware limit that a "
        "phase reaches: the time that its necessary operations would take at the speed of one "
        "large matrix product, measured in the same process (in the first case "
        f"{limits['half']:.0f} TFLOP/s in bfloat16, {limits['single']:.0f} in TF32, "
        f"{limits['double']:.0f} in float64), divided by its actual time. Running blocks again in "
        f"the backward pass does not count as necessary. All rounds together remove {RATIO:.0%}, "
        "so a single round removes more than the first of five.\n"
    )
    head = [
        "",
        "rounds",
        "seconds",
        "peak GPU memory",
        "over weights",
        *PHASES,
    ]
    yield from table(head, [_case(case) for case in found["cases"]])
    yield (
        "`equations` runs the pruned and the unpruned stream and sums `X^T X` and `X^T D`; `solve` "
        "is a Cholesky factorisation and two triangular solves. Neither includes moving the pruned "
        "stream past each layer, or surgery; loading and saving are not included at all. With "
        "several GPUs, the memory is that of the fullest one. The first round of a streamed model "
        "also allocates the page-locked memory that later rounds reuse. The shares are those of "
        "the first round, which includes the warm-up of libraries, and of the second if there is "
        "one. Scoring stays below its limit because blocks run twice, because of the work between "
        "the products (norms, rotation, activations, the sums themselves), and, in streamed "
        "models, because of the transfers. "
        f"Measured on {machine_line(first['machine'])}.\n"
    )
    yield from _extrapolated(found["cases"])


def _extrapolated(cases: list[dict[str, Any]]) -> Iterator[str]:
    """The time of all layers, for cases that ran only some of them."""
    for case in cases:
        name, layers = case["case"].split(":")[0], case["shape"]["layers"]
        if case["layers"] < layers:
            took = case["seconds_by_round"][0]["all"] * layers / case["layers"]
            yield (
                f"All {layers} layers of {name.upper()} would take {took:.0f} s per round, in "
                f"proportion to the {case['layers']} that were run, and the same GPU memory.\n"
            )


def _case(case: dict[str, Any]) -> list[str]:
    name, placement, *_ = case["case"].split(":")
    run, layers = case["layers"], case["shape"]["layers"]
    part = "" if run == layers else f", {run} of {layers} layers"
    if case["gpus"] > 1:
        placement = f"spread over {case['gpus']} GPUs"
    shares = shares_of_limit(case)
    times = [one["all"] for one in case["seconds_by_round"]]
    each = f"{case['seconds']:.0f}" + (
        f" ({', '.join(f'{t:.0f}' for t in times)})" if times[1:] else ""
    )
    return [
        f"{name.upper()}, {placement}, {case['sequences']} sequences{part}",
        str(len(times)),
        each,
        f"{max(case['peak_gib'].values()):.1f} GiB",
        f"{case['peak_over_weights']:.2f}",
        *(", ".join(f"{share:.0%}" for share in shares[phase][:2]) for phase in PHASES),
    ]


def placements(found: dict[str, Any]) -> Iterator[str]:
    """From benchmarks/results/placements.json."""
    cases = found["cases"]
    first = cases[0]
    yield "### Weight placement and processes\n"
    yield (
        f"A 1B-shaped model in {first['dtype']}, {first['sequences']} sequences, two rounds: "
        "seconds per round, memory of the fullest GPU, and the first digits of the digests of all "
        "kept units and of all weights (`benchmarks/cost.py --digests`, `--processes`). The "
        "weights of `whole` were drawn on the GPU, those of the others on the CPU: compare "
        "digests within each pair.\n"
    )
    rows = []
    for case in sorted(cases, key=lambda case: (case["digests"]["units"], case["processes"])):
        placement, processes = case["case"].split(":")[1], case["processes"]
        shared = f", {processes} processes with one GPU each" if processes > 1 else ""
        rows.append(
            [
                placement + shared,
                *(f"{one['all']:.1f}" for one in case["seconds_by_round"]),
                f"{max(case['peak_gib'].values()):.1f} GiB",
                *(f"`{case['digests'][what][:8]}`" for what in ("units", "weights")),
            ]
        )
    yield from table(["", "first round", "second round", "memory", "units", "weights"], rows)


def growth(found: dict[str, Any]) -> Iterator[str]:
    """From benchmarks/results/growth.json."""
    yield "### How the cost grows\n"
    yield (
        "Seconds per round at four sizes of one dimension, with everything else fixed, and the "
        "exponent of the growth, the slope on logarithmic axes (`benchmarks/growth.py`). The "
        "number of operations is proportional to tokens and depth and grows with the square of "
        "the width (the solve: with its cube); exponents are lower where small sizes leave the "
        "GPU waiting. The solve does not depend on tokens.\n"
    )
    for kind, growth in found["growth"].items():
        sizes = sorted(growth["sizes"].items(), key=lambda item: int(item[0]))
        phases = (*PHASES, "all")
        unit = {"tokens": "sequences", "width": "hidden size", "depth": "layers"}[kind]
        yield from table(
            [unit, *phases, "peak memory"],
            [
                *(
                    [
                        size,
                        *(f"{values[phase]:.2f}" for phase in phases),
                        f"{max(values['peak_gib'].values()):.1f} GiB",
                    ]
                    for size, values in sizes
                ),
                ["exponent", *(f"{growth['exponent'][phase]:.2f}" for phase in phases), ""],
            ],
        )
