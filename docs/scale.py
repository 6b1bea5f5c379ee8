"""docs/scale.md: the estimated cost of models and calibration sets beyond one machine."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.operations import RATIO, SHAPES, VOCABULARY, Shape, work
from docs.tables import table
from pruneflow.artifacts import read_json

MODELS = {"7B": SHAPES["7b"], "70B": SHAPES["70b"], "405B": SHAPES["405b"]}
RANKS = (1, 8, 64)
LENGTH, SEQUENCES, BATCH, ROUNDS = 512, 192, 4096, 5
BILLION = 1_000_000_000
# Bytes a second and bytes, assumed: see the page.
INSIDE, BETWEEN, TO_GPU, HOST = 300e9, 50e9, 25e9, 1e12
CHARACTERS = 4.0  # per token of English text, roughly
GIB = 2**30
COLUMNS = ("shared by ranks", "solve", "weights to the GPU", "exchange")


class Reached(NamedTuple):
    """The shares of the hardware limit in the first round of a measured case.

    Attributes:
        shares: of the limit, by phase.
        rest: time outside the phases, over scoring and equations.
    """

    shares: dict[str, float]
    rest: float

    @classmethod
    def of(cls, case: dict[str, Any]) -> "Reached":
        """Read from a case of benchmarks/results/cost.json."""
        first = case["seconds_by_round"][0]
        both = first["score"] + first["equations"]
        return cls(case["share_of_limit"], (first["all"] - first["solve"]) / both - 1)


class Measured(NamedTuple):
    """The measurements behind the estimates.

    Attributes:
        limits: operations a second, by type.
        whole: the 7B model on one GPU.
        streamed: 24 of the 70B model's blocks, from host memory.
        spread: seconds per phase of a round of the 70B model, spread over two GPUs.
        spread_sequences: the sequences of that round.
        two_ranks: the speed-up of two ranks over one, in a second round.
        memory: peak memory of the streamed refit over the sum of its tensors.
        characters: text read and cleaned per second, on two cores.
    """

    limits: dict[str, float]
    whole: Reached
    streamed: Reached
    spread: dict[str, float]
    spread_sequences: int
    two_ranks: float
    memory: float
    characters: float


def constants(results: Path) -> Measured:
    """Read them from the raw results."""
    cases = {case["case"]: case for case in read_json(results / "cost.json")["cases"]}
    whole, large = cases["7b:whole"], cases["70b:streamed:24:48"]
    placements = read_json(results / "placements.json")["cases"]
    spread = cases["70b:spread:80:48"]
    expected = refit_bytes(SHAPES["70b"], large["sequences"] * LENGTH)
    alone, two = (
        next(case for case in placements if case["processes"] == ranks)["seconds_by_round"][1][
            "all"
        ]
        for ranks in (1, 2)
    )
    texts = read_json(results / "data.json")["scales"][-1]["documents"]
    return Measured(
        {kind: value * 1e12 for kind, value in whole["limits_tflops"].items()},
        Reached.of(whole),
        Reached.of(large),
        spread["seconds_by_round"][0],
        spread["sequences"],
        alone / two,
        max(large["peak_gib"].values()) * GIB / expected,
        texts["characters"] / texts["seconds"],
    )


def weight_bytes(shape: Shape) -> int:
    """The weights of the blocks in bfloat16: nearly all weights."""
    return 2 * shape.layers * shape.block


def gram_bytes(shape: Shape) -> int:
    """``X^T X`` and ``X^T D`` of one MLP in float64, which ranks hold and exchange per layer."""
    return 8 * shape.neurons * (shape.neurons + shape.hidden)


def score_bytes(shape: Shape) -> int:
    """Two float64 sums per batch for every neuron, head and KV group."""
    return 8 * 2 * shape.layers * (shape.neurons + shape.heads + shape.groups)


def exchanged(shape: Shape, tokens: float) -> float:
    """Bytes that a rank sends and receives per round: normal equations, and sums of every batch."""
    return 2 * shape.layers * gram_bytes(shape) + tokens / BATCH * score_bytes(shape)


def refit_bytes(shape: Shape, tokens: float) -> float:
    """Bytes of the tensors of a streamed refit on the GPU at its peak."""
    products = gram_bytes(shape) * 1.5  # and the float32 product that is added to them
    blocks = 2 * 2 * shape.block  # and the unpruned copy
    batch = BATCH * shape.neurons * (4 * 2 + 2 * 4)
    tables = 2 * 2 * VOCABULARY * shape.hidden
    return products + blocks + batch + tables + 2 * 2 * tokens * shape.hidden


def groups(shape: Shape, tokens: float) -> int:
    """Groups in which a rank scores its tokens, keeping hidden states at all boundaries."""
    room = max(HOST - weight_bytes(shape), HOST / 10) / 2
    return math.ceil(2 * shape.layers * tokens * shape.hidden / room)


def seconds(shape: Shape, tokens: float, ranks: int, known: Measured) -> dict[str, float]:
    """The time of a round by `COLUMNS`, on a number of GPUs; all but the 7B model are streamed."""
    streamed = shape is not MODELS["7B"]
    reached = known.streamed if streamed else known.whole
    gone = RATIO / ROUNDS * shape.block / (3 * shape.hidden)  # neurons of a layer
    needed = work(shape, shape.layers, 1, LENGTH, round(shape.neurons - gone))
    score, equations, solve = (
        needed[phase].seconds(known.limits) / reached.shares[phase]
        for phase in ("score", "equations", "solve")
    )
    busy = min(ranks, math.ceil(tokens / BATCH))
    own = math.ceil(tokens / LENGTH / busy)  # sequences of the rank that has most
    trips = 2 * groups(shape, tokens / busy) + 2 if streamed and ranks > 1 else 0
    bandwidth = INSIDE if ranks <= 8 else BETWEEN
    sent = exchanged(shape, tokens) if ranks > 1 else 0
    spent = (
        own * (score + equations) * (1 + reached.rest),
        solve,
        trips * weight_bytes(shape) / TO_GPU,
        sent / bandwidth,
    )
    return dict(zip(COLUMNS, spent, strict=True))


def _time(value: float) -> str:
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:,.0f} h"


def _bytes(value: float) -> str:
    return f"{value / 1e12:,.1f} TB" if value >= 1e12 else f"{value / 1e9:,.0f} GB"


def scale_page(results: Path) -> str:
    """The text of docs/scale.md, from the raw results in a folder."""
    known = constants(results)
    parts = (_beginning, _times, _memory, _billion, _ending)
    return "\n".join(line for part in parts for line in part(known))


def _beginning(known: Measured) -> Iterator[str]:
    whole, streamed = (
        ", ".join(f"{phase} {share:.0%}" for phase, share in reached.shares.items())
        for reached in (known.whole, known.streamed)
    )
    yield f"""# Beyond one machine

Estimated cost of a round for models and calibration sets that do not fit the machines at hand, in
proportion to what was [measured](benchmarks.md#what-a-round-costs). Only the cases listed there
were run.

Measured on an H200:

- The phases reach these shares of the speed of a large matrix product:
  - 7B model on the GPU: {whole};
  - blocks of the 70B model, streamed from host memory: {streamed}, in the first round, which also
    allocates page-locked memory (later rounds are faster).
- The rest of a round takes {known.whole.rest:.0%} and {known.streamed.rest:.0%} of the time of
  scoring and equations.
- A streamed refit takes {known.memory:.2f} times the memory of its tensors.
- Text is read and cleaned at {known.characters / 1e6:.1f} million characters per second on two
  cores.

Assumed, not measured: {INSIDE / 1e9:.0f} GB/s between GPUs of one host, {BETWEEN / 1e9:.0f} GB/s
per GPU between hosts, {TO_GPU / 1e9:.0f} GB/s from host memory to a GPU,
{HOST / 1e12:.0f} TB of host memory per rank, {CHARACTERS:.0f} characters per token.
"""


def _rows(tokens: float, known: Measured) -> Iterator[list[str]]:
    for name, shape in MODELS.items():
        for ranks in RANKS:
            parts = seconds(shape, tokens, ranks, known)
            total = sum(parts.values())
            hours = ROUNDS * total * ranks / 3600
            shown = f"{hours:,.1f}" if hours >= 1 else f"{hours:.2f}"
            yield [name, str(ranks), _time(total), shown, *map(_time, parts.values())]


def _times(known: Measured) -> Iterator[str]:
    tokens = SEQUENCES * LENGTH
    yield f"## Time\n\nA round on {SEQUENCES} sequences of {LENGTH} tokens:\n"
    head = ["model", "GPUs", "one round", f"GPU hours, {ROUNDS} rounds", *COLUMNS]
    yield from table(head, _rows(tokens, known))
    yield (
        "Ranks share the batches. Each rank solves the system of every layer, moves all weights to "
        "its GPU (for one GPU, the measured share includes this), and exchanges the normal "
        "equations of every layer and the sums of every batch with all others. There are "
        f"{tokens // BATCH} batches of {BATCH:,} tokens, so more GPUs than that do not help, and "
        "one host is enough for a set of this size. Sharing is assumed to be ideal: two ranks on "
        f"two H200 were {known.two_ranks:.2f} times as fast as one in a warm round of a 1B model.\n"
    )
    more = SEQUENCES / known.spread_sequences
    took = known.spread["all"]
    longer = (took - known.spread["solve"]) * more + known.spread["solve"]
    yield (
        "Without moving weights, a complete round of the 70B model (80 layers) spread over two "
        f"H200 took {_time(took)} on {known.spread_sequences} sequences (measured), or "
        f"{_time(longer)} on {SEQUENCES} in proportion.\n"
    )


def _memory(known: Measured) -> Iterator[str]:
    tokens = SEQUENCES * LENGTH
    yield "## Memory, disk, network\n"
    head = ["model", "weights", "GPU, streamed", "host memory per rank", "disk", "exchanged"]
    left = sum(1 - RATIO * number / ROUNDS for number in range(1, ROUNDS + 1))

    def row(name: str, shape: Shape) -> list[str]:
        weights = weight_bytes(shape)
        states = 2 * 2 * tokens * shape.hidden
        boundaries = 2 * shape.layers * tokens * shape.hidden
        return [
            name,
            _bytes(weights),
            _bytes(known.memory * refit_bytes(shape, tokens)),
            f"{_bytes(weights + states)}, and up to {_bytes(boundaries)}",
            _bytes(weights * (1 + left)),
            _bytes(exchanged(shape, tokens)),
        ]

    yield from table(head, (row(name, shape) for name, shape in MODELS.items()))
    yield (
        "- **Host memory**: the weights and the hidden states of both streams, plus hidden states "
        "at all boundaries for scoring. Of the latter, a rank holds as many as fit half of the "
        "free memory, and processes the rest in further groups.\n"
        "- **Disk**: the dense model and five rounds to 20 %, without DVC's cache, which takes the "
        "same again if the file system has no links; `pruneflow gc` removes what is not needed.\n"
        "- **Exchanged**: what a rank sends and receives in a round: the normal equations of all "
        "layers and the sums of every batch for every unit.\n\n"
        "The times above do not include file access, about five reads and one write of a model's "
        "bytes per round ([operations](operations.md#what-the-pipeline-costs)), or the comparison "
        "of the result with the dense model.\n"
    )


def _billion(known: Measured) -> Iterator[str]:
    yield "## A billion tokens\n"
    head = ["model", "GPUs", "one round", f"GPU hours, {ROUNDS} rounds", *COLUMNS]
    yield from table(head, (row for row in _rows(BILLION, known) if row[1] != "1"))
    reading = BILLION * CHARACTERS / known.characters / 3600
    large = SHAPES["70b"]
    own = known.spread["all"] - known.spread["solve"]  # of two GPUs
    held = ROUNDS * 2 * own * BILLION / (known.spread_sequences * LENGTH) / 3600
    states, boundaries = (kept * BILLION * large.hidden for kept in (2 * 2, 2 * large.layers))
    yield (
        f"Reading and cleaning {BILLION * CHARACTERS / 1e9:.0f} GB of text takes {reading:.1f} "
        "hours on two cores, in bounded memory (documents are streamed, see "
        f"[data](reference/data.md)); the token blocks take {_bytes(4 * BILLION)}. The hidden "
        f"states of the 70B model take {_bytes(states)} for both streams and {_bytes(boundaries)} "
        "at all boundaries: scoring processes the set in groups, "
        f"{groups(large, BILLION / 8):,} on each of eight GPUs, but the refit holds its streams "
        "in memory completely. If GPUs hold the 70B model, two per rank, the measured round "
        f"scales to {held:,.0f} GPU hours for {ROUNDS} rounds.\n"
    )


def _ending(known: Measured) -> Iterator[str]:
    eight = [_bytes(8 * weight_bytes(MODELS[name])) for name in ("70B", "405B")]
    yield f"""## Bottlenecks

In the order in which they are reached:

1. **Host memory.** Every rank holds the complete model in its own memory, so eight ranks on one
   host need eight times the weights: {eight[0]} for 70B, {eight[1]} for 405B. Ranks of a host do
   not share one copy yet: run one rank per host, use fewer GPUs, or give each rank several GPUs and
   spread the model over them, which takes it out of host memory.
2. **The streams of the refit**, which are held in memory. Very large sets would need a sample of
   the set, or streams on disk; neither is implemented.
3. **The solve**, which every rank repeats, so more GPUs do not help. The system of a layer
   could be distributed over ranks; this is not implemented.
4. **The exchange** of normal equations between hosts, which more GPUs do not reduce either.
5. **GPU memory**, last: normal equations in float64 grow with the square of the neurons,
   not with depth.

## Tools for scaling out

- **Several GPUs of one host**: spread the model over them (`compute.placement`), share the text
  among them (`compute.processes` or `torchrun`, see [several GPUs](how-to/gpu.md#several-gpus)), or
  both. **Several hosts** on one file system: `torchrun` on each. Ranks on one machine are tested,
  several machines are not.
- **Many recipes**: Dask, with one worker per GPU ([sweep](how-to/sweep.md)). Recipes share nothing
  but the cache.
- **Schedules on a cluster**: a Prefect work pool of type Kubernetes instead of the process worker,
  with the same deployments. It needs an image with the project and a GPU, and was not tried.
- **Artifacts**: DVC's remote and MLflow's artifacts on object storage, with PostgreSQL
  ([team setup](how-to/team.md)). `make test-team` runs the pipeline this way, on loopback.
"""
