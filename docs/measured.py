"""docs/benchmarks.md: what was measured, of the raw results in benchmarks/results."""

from pathlib import Path

from docs.measured_cost import cost, growth, placements
from docs.measured_methods import side_by_side
from docs.measured_speed import SPEED, home, speed
from pruneflow.artifacts import read_json

BEGINNING = """# Benchmarks

What pruneflow costs and gains, measured beside others by one program, wins and losses alike. This
page is written by `make docs` from the raw results in `benchmarks/results/`, which name versions
and settings (seeds are 0 where none is named); the docstring of each program in `benchmarks/` says
how it measures and how to run it. [The method](method.md#evidence) has more rows and what each
choice is worth, the [evaluation](evaluation.md) its own speed, [operations](operations.md) what the
pipeline costs.
"""


def benchmarks_page(results: Path) -> str:
    """The text of docs/benchmarks.md, of the raw results in a folder."""
    parts = [
        BEGINNING,
        *side_by_side(read_json(results / "side_by_side.json")),
        *cost(read_json(results / "cost.json")),
        *placements(read_json(results / "placements.json")),
        *growth(read_json(results / "growth.json")),
        "## How much faster a pruned model is\n",
        SPEED,
        *speed("A GPU", read_json(results / "speed_gpu.json")),
        *speed("Two cores", read_json(results / "speed_cpu.json")),
        *home(read_json(results / "home.json")),
    ]
    return "\n".join(parts)
