"""The part of docs/benchmarks.md on reimplemented methods and external tools."""

from collections.abc import Iterator
from typing import Any

from benchmarks.bench_v1 import HELD_OUT
from docs.tables import machine_line, table

OURS = ("uniform_one_shot", "uniform", "per_layer")
NAMES = {
    "random": "random units",
    "magnitude": "magnitude",
    "optipfair_weights": "OptiPFair, weights only",
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


def side_by_side(found: dict[str, Any]) -> Iterator[str]:
    """From benchmarks/results/side_by_side.json."""
    setup, rows = found["setup"], found["rows"]
    ratios = sorted({row["ratio"] for row in rows if row["ratio"]})
    yield "\n## Comparison with other methods\n"
    yield (
        f"SmolLM2-135M-Instruct in {setup['dtype']}, {setup['sequences']} sequences of "
        f"{setup['length']} tokens from six domains, seed {setup['seed']}, on machines of one "
        "kind. Text and questions come from folders outside the repository (`--data`, "
        "`--zero-shot`). Install the external tools first; an interrupted command resumes:\n"
    )
    yield "\n".join(
        (
            "```sh",
            "pip install --no-deps optipfair torch-pruning fmchisel",
            f"python benchmarks/quality.py --questions {setup['questions']} --repeats "
            f"{setup['repeats']} --draws {setup['fisher_draws']} --windows {setup['windows']} \\",
            f"    --ratios {' '.join(f'{ratio:g}' for ratio in ratios)} --rows dense "
            f"{' '.join(NAMES)} \\",
            "    --out benchmarks/results/side_by_side.json",
            "```",
            "",
        )
    )
    yield (
        "Perplexity is the ratio to the dense model's: the geometric mean over "
        f"{len(HELD_OUT)} held-out sets, at most {setup['windows']} windows of "
        f"{setup['window_length']} tokens each; the second table lists each set. Zero-shot "
        f"accuracy is in per cent on {setup['questions']} questions per task, with a "
        f"standard error of at most {50 / setup['questions'] ** 0.5:.1f}. "
        "Time and peak GPU memory are those of pruning alone, with the same number of tokens per "
        "pass; pruneflow uses half as many in backward passes. "
        "Speed-ups are medians over both models timed in turn on one sequence.\n"
    )
    yield (
        "An asterisk marks a method reimplemented from its paper (OSSCAR without its local "
        "search); the other names are external tools. Of fmchisel, only the file with its solver "
        "is used, because the package requires older versions of torch and transformers.\n"
    )
    dense = next(row for row in rows if row["row"] == "dense")
    scored = ", ".join(f"{name} {dense['zero_shot'][task]:.1%}" for task, name in TASKS.items())
    yield f"The dense model: {scored}.\n"
    for ratio in ratios:
        own = [row for row in rows if row["ratio"] == ratio and "error" not in row]
        own.sort(key=_mean)
        yield f"### {ratio:.0%} of the block weights\n"
        head = ["", "perplexity", *TASKS.values(), "seconds", "GiB", "prefill", "decode"]
        yield from table(head, [_quality(row) for row in own])
        yield from table(["perplexity of", *HELD_OUT], [_by_set(row, dense) for row in own])
        yield "\n".join(_verdict(own)) + "\n"
        missing = [name for name in NAMES if name not in {row["row"] for row in own}]
        if missing:
            yield f"Not measured here: {', '.join(_plain(name) for name in missing)}.\n"
    yield (
        "With one sequence and so small a model, an H200 mostly waits for kernel launches, so no "
        "method shows a speed-up here; see [below](#how-much-faster-a-pruned-model-is) for the "
        f"effect of widths. Measured on {machine_line(found['machines'][0])}.\n"
    )


def _mean(row: dict[str, Any]) -> float:
    return float(row["perplexity_ratio_mean"])


def number(value: float) -> str:
    """Four significant digits; three from ten on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _quality(row: dict[str, Any]) -> list[str]:
    return [
        NAMES[row["row"]],
        number(_mean(row)),
        *(f"{100 * row['zero_shot'][task]:.1f}" for task in TASKS),
        f"{row['seconds']:.1f}",
        f"{row['peak_gib']:.1f}",
        *(f"{row['speedup'][phase]['median']:.2f}" for phase in ("prefill", "decode")),
    ]


def _by_set(row: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """Perplexity ratio, pruned over dense, by held-out set."""
    both = (row["perplexity"], dense["perplexity"])
    ratios = [
        mine["perplexity"] / theirs["perplexity"]
        for mine, theirs in ((both[0][name], both[1][name]) for name in HELD_OUT)
    ]
    return [_plain(row["row"]), *map(number, ratios)]


def _verdict(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The best recipe of pruneflow compared with the best of the others by each measure."""
    ours, others = ([row for row in rows if (row["row"] in OURS) is own] for own in (True, False))
    mine, best = min(ours, key=_mean), min(others, key=_mean)
    yield (
        f"pruneflow's best recipe by perplexity ({_plain(mine['row'])}) compared with the best of "
        "the others:\n"
    )
    for name, measure, form, theirs in (
        ("perplexity", _mean, "{:.3f}", best),
        ("wrong zero-shot answers", _missed, "{:.1%}", min(others, key=_missed)),
        ("time (the best by perplexity)", _seconds, "{:.1f} s", best),
        ("memory (the best by perplexity)", _memory, "{:.1f} GiB", best),
    ):
        word = "better" if measure(mine) < measure(theirs) else "worse"
        yield (
            f"- {name}: {word}, {form.format(measure(mine))} compared with "
            f"{form.format(measure(theirs))} ({_plain(theirs['row'])})"
        )
    quick = min(ours, key=_seconds)
    yield (
        f"- pruneflow's fastest recipe, {_plain(quick['row'])}: perplexity {_mean(quick):.3f} in "
        f"{_seconds(quick):.1f} s and {_memory(quick):.1f} GiB"
    )


def _seconds(row: dict[str, Any]) -> float:
    return float(row["seconds"])


def _memory(row: dict[str, Any]) -> float:
    return float(row["peak_gib"])


def _missed(row: dict[str, Any]) -> float:
    return 1 - sum(row["zero_shot"].values()) / len(row["zero_shot"])


def _plain(name: str) -> str:
    return NAMES[name].replace("**", "").replace("pruneflow, ", "")
