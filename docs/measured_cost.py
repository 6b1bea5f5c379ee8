"""The part of docs/benchmarks.md on what a round costs, and how that grows."""

from collections.abc import Iterator
from typing import Any

from benchmarks.operations import RATIO, shares_of_limit
from docs.tables import machine_line, table

PHASES = ("score", "equations", "solve")


def cost(found: dict[str, Any]) -> Iterator[str]:
    """Of benchmarks/results/cost.json."""
    yield "## What a round costs\n"
    first = found["cases"][0]
    limits = first["limits_tflops"]
    yield (
        f"Llama-shaped models with random weights in {first['dtype']}, sequences of "
        f"{first['length']} tokens, {first['batch_tokens']:,} tokens a batch "
        f"(`benchmarks/cost.py`). The share of the limit is the time that the operations a phase "
        "cannot do without would take at the speed of one large matrix product, as measured in the "
        f"same process (of the first case {limits['half']:.0f} TFLOP/s in bfloat16, "
        f"{limits['single']:.0f} in TF32, {limits['double']:.0f} in float64), over the time it "
        "took. Running blocks again in the backward pass is not counted as needed. In so many "
        f"rounds {RATIO:.0%} is removed, so that one round removes more than the first of five.\n"
    )
    head = [
        "",
        "rounds",
        "seconds",
        "most GPU memory",
        "over weights",
        *PHASES,
    ]
    yield from table(head, [_case(case) for case in found["cases"]])
    yield (
        "`equations` runs the pruned and the unpruned stream and sums `X^T X` and `X^T D`; `solve` "
        "is Cholesky and two triangular solves. Not in them: moving the pruned stream behind each "
        "layer, and surgery. Loading and saving are apart. Of several GPUs the memory is the "
        "fullest one's. A streamed model's first round also "
        "takes the page-locked memory that later rounds use again. The shares are of the first "
        "round, in which libraries also warm up, and of the second where there is one. What keeps "
        "scoring from its limit is running blocks twice, what lies between the products (norms, "
        "rotation, activations, the sums themselves), and in streamed models the transfers. "
        f"Measured on {machine_line(first['machine'])}.\n"
    )
    yield from _extrapolated(found["cases"])


def _extrapolated(cases: list[dict[str, Any]]) -> Iterator[str]:
    """What all layers would take where some were left out."""
    for case in cases:
        name, layers = case["case"].split(":")[0], case["shape"]["layers"]
        if case["layers"] < layers:
            took = case["seconds_by_round"][0]["all"] * layers / case["layers"]
            yield (
                f"All {layers} layers of {name.upper()} would take {took:.0f} s a round by "
                f"proportion to the {case['layers']} that were run, and the same GPU memory.\n"
            )


def _case(case: dict[str, Any]) -> list[str]:
    name, placement, *_ = case["case"].split(":")
    whole = case["layers"] == case["shape"]["layers"]
    part = "" if whole else f", {case['layers']} of {case['shape']['layers']} layers"
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
    """Of benchmarks/results/placements.json."""
    cases = found["cases"]
    first = cases[0]
    yield "### Where the weights are, and by how many\n"
    yield (
        f"A 1B-shaped model in {first['dtype']}, {first['sequences']} sequences, two rounds: "
        "seconds of each, memory of the fullest GPU, and the beginnings of the digests of all "
        "units kept and of all weights (`benchmarks/cost.py --digests`, `--processes`). The "
        "weights of the whole model were drawn on the GPU, those of the others on the CPU, so that "
        "digests compare within each pair.\n"
    )
    rows = []
    for case in sorted(cases, key=lambda case: (case["digests"]["units"], case["processes"])):
        placement, processes = case["case"].split(":")[1], case["processes"]
        shared = f", {processes} processes with a GPU each" if processes > 1 else ""
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
    """Of benchmarks/results/growth.json."""
    yield "### How it grows\n"
    yield (
        "Seconds of a round at four sizes of each, everything else equal, and the exponent of the "
        "growth, the slope in logarithms (`benchmarks/growth.py`). Operations grow with tokens and "
        "depth in proportion, with width by the square, the solve's by the cube; below that where "
        "small sizes leave the GPU waiting. The solve does not depend on tokens.\n"
    )
    for kind, growth in found["growth"].items():
        sizes = sorted(growth["sizes"].items(), key=lambda item: int(item[0]))
        phases = (*PHASES, "all")
        unit = {"tokens": "sequences", "width": "hidden size", "depth": "layers"}[kind]
        yield from table(
            [unit, *phases, "most memory"],
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
