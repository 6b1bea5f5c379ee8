"""docs/benchmarks.md: what was measured, of the raw results in benchmarks/results."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.bench_v1 import HELD_OUT
from docs.tables import table
from pruneflow.artifacts import read_json

OURS = ("uniform_one_shot", "uniform", "per_layer")
NAMES = {
    "random": "random units",
    "magnitude": "magnitude",
    "optipfair_weights": "OptiPFair, weights alone",
    "optipfair": "OptiPFair, with data",
    "torch_pruning": "Torch-Pruning, group Taylor",
    "fmchisel": "fmchisel, OSSCAR",
    "wanda_sp": "Wanda-sp*",
    "flap": "FLAP*",
    "llm_pruner": "LLM-Pruner*",
    "osscar": "OSSCAR*",
    "uniform_one_shot": "**pruneflow**, uniform, one round",
    "uniform": "**pruneflow**, uniform, five rounds",
    "per_layer": "**pruneflow**, per_layer, five rounds",
}
TASKS = {"arc_easy": "ARC-easy", "piqa": "PIQA", "lambada_openai": "LAMBADA"}
BEGINNING = """# Benchmarks

What pruneflow costs and gains, measured beside others in the same run, wins and losses alike.
This page is written by `make docs` from the raw results in `benchmarks/results/`, which name
versions, settings and seeds; the docstring of each program in `benchmarks/` says how it measures
and how to run it. [The method](method.md#evidence) has more rows and what each choice is worth,
the [evaluation](evaluation.md) its own speed, [operations](operations.md) what the pipeline
costs.
"""

SPEED = """Dense and pruned in turn (`benchmarks/speed.py`). The ideal speed-up is the ratio of
the least times, operations or bytes over what the machine does in a large product or a long
read, head and attention included; the share is (speed-up - 1) / (ideal - 1). Aligned widths are
multiples of 64, unaligned ones have one neuron more, `heads` cuts KV groups with their query
heads in about the same share. In brackets what people quote, 1 / (1 - ratio).
"""


def benchmarks_page(results: Path) -> str:
    """The text of docs/benchmarks.md, of the raw results in a folder."""
    parts = [
        BEGINNING,
        *_side_by_side(read_json(results / "side_by_side.json")),
        *_cost(read_json(results / "cost.json")),
        *_growth(read_json(results / "growth.json")),
        "## How much faster a pruned model is\n",
        SPEED,
        *_speed("A GPU", read_json(results / "speed_gpu.json")),
        *_speed("Two cores", read_json(results / "speed_cpu.json")),
        *_home(read_json(results / "home.json")),
    ]
    return "\n".join(parts)


def _machine(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"{facts['device']}; {versions}"


# ------------------------------------------------------------------------------- side by side


def _side_by_side(found: dict[str, Any]) -> Iterator[str]:
    setup, rows = found["setup"], found["rows"]
    yield "\n## Beside other tools and methods\n"
    yield (
        f"SmolLM2-135M-Instruct in {setup['dtype']}, {setup['sequences']} sequences of "
        f"{setup['length']} tokens from six domains, seed {setup['seed']}, one machine and one "
        f"program (`benchmarks/quality.py --questions {setup['questions']} --repeats "
        f"{setup['repeats']} --draws {setup['fisher_draws']} --windows {setup['windows']}`). "
        "Perplexity is over the dense model's: the geometric mean and the worst of "
        f"{len(HELD_OUT)} held-out sets, at most {setup['windows']} windows of "
        f"{setup['window_length']} tokens each. Zero-shot accuracy in per cent on "
        f"{setup['questions']} questions a task; its "
        f"standard error is at most {50 / setup['questions'] ** 0.5:.1f}. "
        "Time and most GPU memory are those of pruning alone. "
        f"Speed-ups are medians of both models timed in turn, one sequence.\n"
    )
    yield "An asterisk marks a method built here from its paper; the other names are the tools.\n"
    dense = next(row for row in rows if row["row"] == "dense")
    scored = ", ".join(f"{name} {dense['zero_shot'][task]:.1%}" for task, name in TASKS.items())
    yield f"The dense model: {scored}.\n"
    for ratio in sorted({row["ratio"] for row in rows if row["ratio"]}):
        own = [row for row in rows if row["ratio"] == ratio and "error" not in row]
        yield f"### {ratio:.0%} of the block weights\n"
        head = ["", "perplexity", "worst", *TASKS.values(), "seconds", "GiB", "prefill", "decode"]
        yield from table(head, [_quality(row) for row in sorted(own, key=_mean)])
        yield "\n".join(_verdict(own)) + "\n"
        missing = [name for name in NAMES if name not in {row["row"] for row in own}]
        if missing:
            yield f"Not measured here: {', '.join(_plain(name) for name in missing)}.\n"
    yield (
        "One sequence through so small a model leaves an H200 waiting for launches, so that no "
        "method's speed-up shows here; [below](#how-much-faster-a-pruned-model-is) is what widths "
        f"are worth. Measured on {_machine(found['machines'][0])}.\n"
    )


def _mean(row: dict[str, Any]) -> float:
    return float(row["perplexity_ratio_mean"])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _quality(row: dict[str, Any]) -> list[str]:
    worst, ratio = row["perplexity_ratio_worst"]
    return [
        NAMES[row["row"]],
        _number(_mean(row)),
        f"{_number(ratio)} {worst}",
        *(f"{100 * row['zero_shot'][task]:.1f}" for task in TASKS),
        f"{row['seconds']:.1f}",
        f"{row['peak_gib']:.1f}",
        *(f"{row['speedup'][phase]['median']:.2f}" for phase in ("prefill", "decode")),
    ]


def _verdict(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Ours beside the best of the others; time and memory beside the one that prunes best."""
    ours, others = ([row for row in rows if (row["row"] in OURS) is own] for own in (True, False))
    rival = min(others, key=_mean)
    yield "Our best beside the best of the others measured here:\n"
    for name, measure, form, among in (
        ("perplexity", _mean, "{:.3f}", others),
        ("zero-shot answers that were wrong, the mean of three", _missed, "{:.1%}", others),
        ("time, beside the best by perplexity", _seconds, "{:.1f} s", [rival]),
        ("memory, beside the best by perplexity", _memory, "{:.1f} GiB", [rival]),
    ):
        mine, theirs = min(ours, key=measure), min(among, key=measure)
        word = "better" if measure(mine) < measure(theirs) else "worse"
        yield (
            f"- {name}: {word}, {form.format(measure(mine))} ({_plain(mine['row'])}) against "
            f"{form.format(measure(theirs))} ({_plain(theirs['row'])})"
        )


def _seconds(row: dict[str, Any]) -> float:
    return float(row["seconds"])


def _memory(row: dict[str, Any]) -> float:
    return float(row["peak_gib"])


def _missed(row: dict[str, Any]) -> float:
    return 1 - sum(row["zero_shot"].values()) / len(row["zero_shot"])


def _plain(name: str) -> str:
    return NAMES[name].replace("**", "").replace("pruneflow, ", "")


# ---------------------------------------------------------------------------- cost of a round


def _cost(found: dict[str, Any]) -> Iterator[str]:
    yield "## What a round costs\n"
    first = found["cases"][0]
    limits = first["limits_tflops"]
    yield (
        f"Llama-shaped models with random weights in {first['dtype']}, sequences of "
        f"{first['length']} tokens, {first['batch_tokens']:,} tokens a batch "
        f"(`benchmarks/cost.py`). The share of the limit is the time that the operations a phase "
        "cannot do without would take at the speed of one large matrix product, as measured in the "
        f"same process ({limits['half']:.0f} TFLOP/s in bfloat16, {limits['single']:.0f} in TF32, "
        f"{limits['double']:.0f} in float64), over the time it took. Running blocks again in the "
        "backward pass is not counted as needed.\n"
    )
    head = [
        "",
        "rounds",
        "seconds",
        "most GPU memory",
        "over weights",
        "score",
        "equations",
        "solve",
    ]
    yield from table(head, [_case(case) for case in found["cases"]])
    yield (
        "`equations` runs the pruned and the unpruned stream and sums `X^T X` and `X^T D`; `solve` "
        "is Cholesky and two triangular solves. Not in them: moving the pruned stream behind each "
        "layer, and surgery. Loading and saving are apart. Of several GPUs the memory is the "
        "fullest one's. A streamed model's first round also "
        "takes the page-locked memory that later rounds use again. The shares are of the first "
        "round, in which libraries also warm up. What keeps scoring from its limit is running "
        "blocks twice, what lies between the products (norms, rotation, activations, the sums "
        "themselves), and in streamed models the transfers. "
        f"Measured on {_machine(found['machine'])}.\n"
    )


def _case(case: dict[str, Any]) -> list[str]:
    name, placement, *_ = case["case"].split(":")
    whole = case["layers"] == case["shape"]["layers"]
    part = "" if whole else f", {case['layers']} of {case['shape']['layers']} layers"
    if case["gpus"] > 1:
        placement = f"spread over {case['gpus']} GPUs"
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
        *(f"{case['share_of_limit'][phase]:.0%}" for phase in ("score", "equations", "solve")),
    ]


def _growth(found: dict[str, Any]) -> Iterator[str]:
    yield "### How it grows\n"
    yield (
        "Seconds of a round at four sizes of each, everything else equal, and the exponent of the "
        "growth, the slope in logarithms (`benchmarks/growth.py`). Operations grow with tokens and "
        "depth in proportion, with width by the square, the solve's by the cube; below that where "
        "small sizes leave the GPU waiting. The solve does not depend on tokens.\n"
    )
    for kind, growth in found["growth"].items():
        sizes = sorted(growth["sizes"].items(), key=lambda item: int(item[0]))
        phases = ("score", "equations", "solve", "all")
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


# ------------------------------------------------------------------------------------- speed


def _speed(title: str, found: dict[str, Any]) -> Iterator[str]:
    model, settings, facts = found["model"], found["settings"], found["machine"]
    yield f"### {title}\n"
    yield (
        f"{_model(model)}, {model['layers']} layers in {model['dtype']}, prompts of "
        f"{settings['prompt']} tokens and {settings['new_tokens']} more, plain transformers. "
        f"{_machine(facts)}; {facts['speed']['flops'] / 1e12:.2f} TFLOP/s, "
        f"{facts['speed']['bytes'] / 1e9:,.0f} GB/s.\n"
    )
    variants = [variant for variant in found["variants"] if variant != "dense"]
    for phase in ("prefill", "decode"):
        rows = [row for row in found["rows"] if row.get("phase") == phase]
        batches = sorted({row["batch"] for row in rows})
        yield from table(
            [phase, *(f"batch {batch}" for batch in batches)],
            [_speeds(variant, rows, batches, found["variants"]) for variant in variants],
        )
    yield from (
        f"Batch {row['batch']} was left out: {row['left_out']}.\n"
        for row in found["rows"]
        if "left_out" in row
    )
    yield from _eaten(found)


def _model(model: dict[str, Any]) -> str:
    return "SmolLM2-135M-Instruct" if "smollm2" in model["source"] else model["source"].capitalize()


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
        "ideal time a pruned model spends in it.\n"
    )
    shown = [row for row in rows if not row["variant"].endswith("20%")]
    yield from table(["", *parts], [_part_shares(row) for row in shown])


def _part_shares(row: dict[str, Any]) -> list[str]:
    figure = "of_dense" if row["variant"] == "dense" else "eats"
    return [
        f"{row['phase']}, {row['variant']}",
        *(str(round(100 * part[figure])) for part in row["parts"].values()),
    ]


# -------------------------------------------------------------------------------------- home


def _home(found: dict[str, Any]) -> Iterator[str]:
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
            ["most memory, GiB", *(f"{found['peak_gib_by_part'][part]:.2f}" for part in parts)],
        ],
    )
    yield (
        "Scoring is `forward` (every block twice, with the losses and sums) and `backward`; the "
        "refit is `streams`, `gram` and `solve`. "
        f"{_machine(found['machine'])}.\n"
    )
