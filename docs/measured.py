"""docs/benchmarks.md: the measurements, from the raw results in benchmarks/results."""

from pathlib import Path

from docs.measured_cost import cost, growth, placements
from docs.measured_methods import side_by_side
from docs.measured_speed import SPEED, home, speed
from pruneflow.artifacts import read_json

BEGINNING = """# Benchmarks

The cost and quality of pruneflow, compared with reimplemented methods and external tools in one
program, including where they are better. `make docs` generates this page from the raw results in
`benchmarks/results/`, which record versions and settings (seeds are 0 unless stated). The docstring
of each program in `benchmarks/` explains how it measures and how to run it. See also
[method](method.md#evidence) for more rows and the effect of each choice,
[evaluation](evaluation.md#tasks) for the speed of the evaluation, and
[operations](operations.md#what-the-pipeline-costs) for the cost of the pipeline.
"""


def benchmarks_page(results: Path) -> str:
    """The text of docs/benchmarks.md, from the raw results in a folder."""
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
