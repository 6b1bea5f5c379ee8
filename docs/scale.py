"""docs/scale.md: what models and calibration sets past these machines would cost, by proportion."""

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
CHARACTERS = 4.0  # of a token of English text, about
GIB = 2**30
COLUMNS = ("shared by ranks", "solve", "weights to the GPU", "exchange")


class Reached(NamedTuple):
    """What a measured case reached in its first round.

    Attributes:
        shares: of the limit, by phase.
        rest: time beside the phases, over scoring and equations.
    """

    shares: dict[str, float]
    rest: float

    @classmethod
    def of(cls, case: dict[str, Any]) -> "Reached":
        """Read off a case of benchmarks/results/cost.json."""
        first = case["seconds_by_round"][0]
        both = first["score"] + first["equations"]
        return cls(case["share_of_limit"], (first["all"] - first["solve"]) / both - 1)


class Measured(NamedTuple):
    """What the estimates stand on.

    Attributes:
        limits: operations a second, by type.
        whole: the 7B model on the GPU.
        streamed: 24 of the 70B model's blocks, from host memory.
        spread: a round's phases in seconds of the 70B model, spread over two GPUs.
        spread_sequences: of that round.
        two_ranks: how much faster than one they were in a second round.
        memory: most memory of the streamed refit over what its tensors add up to.
        characters: of text a second, read and cleaned, on two cores.
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
    """Read them off the raw results."""
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
    """The blocks' weights in bfloat16, which are nearly all."""
    return 2 * shape.layers * shape.block


def gram_bytes(shape: Shape) -> int:
    """``X^T X`` and ``X^T D`` of one MLP in float64: what a layer's ranks exchange and hold."""
    return 8 * shape.neurons * (shape.neurons + shape.hidden)


def score_bytes(shape: Shape) -> int:
    """What a batch shows of every neuron, head and KV group, two sums in float64."""
    return 8 * 2 * shape.layers * (shape.neurons + shape.heads + shape.groups)


def exchanged(shape: Shape, tokens: float) -> float:
    """Bytes that a rank sends and receives in a round: normal equations, and every batch's sums."""
    return 2 * shape.layers * gram_bytes(shape) + tokens / BATCH * score_bytes(shape)


def refit_bytes(shape: Shape, tokens: float) -> float:
    """Tensors that a streamed refit has on the GPU at its fullest."""
    products = gram_bytes(shape) * 1.5  # and the float32 product that is added to them
    blocks = 2 * 2 * shape.block  # and the unpruned copy
    batch = BATCH * shape.neurons * (4 * 2 + 2 * 4)
    tables = 2 * 2 * VOCABULARY * shape.hidden
    return products + blocks + batch + tables + 2 * 2 * tokens * shape.hidden


def groups(shape: Shape, tokens: float) -> int:
    """In how many groups a rank scores its tokens: hidden states at all boundaries are kept."""
    room = max(HOST - weight_bytes(shape), HOST / 10) / 2
    return math.ceil(2 * shape.layers * tokens * shape.hidden / room)


def seconds(shape: Shape, tokens: float, ranks: int, known: Measured) -> dict[str, float]:
    """A round's time by `COLUMNS`, on so many GPUs, streamed but for the 7B model."""
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
    """The text of docs/scale.md, of the raw results in a folder."""
    known = constants(results)
    parts = (_beginning, _times, _memory, _billion, _ending)
    return "\n".join(line for part in parts for line in part(known))


def _beginning(known: Measured) -> Iterator[str]:
    whole, streamed = (
        ", ".join(f"{phase} {share:.0%}" for phase, share in reached.shares.items())
        for reached in (known.whole, known.streamed)
    )
    yield f"""# Past one machine

What a round costs on models and calibration sets that these machines cannot hold, by proportion
from what was [measured](benchmarks.md#what-a-round-costs); nothing on this page ran beyond the
cases named there.

Measured on an H200, shares of the limit of a large product that the phases reach: {whole} for a
7B model on the GPU; {streamed} for blocks of the 70B model that come from host memory, in a first
round, which also takes page-locked memory: later rounds are faster. The rest of a round is
{known.whole.rest:.0%} and {known.streamed.rest:.0%} of scoring and equations. A streamed refit
holds {known.memory:.2f} times what its tensors add up to. Text is read and cleaned at
{known.characters / 1e6:.1f} million characters a second on two cores. Assumed, not measured:
{INSIDE / 1e9:.0f} GB/s between GPUs of one host, {BETWEEN / 1e9:.0f} GB/s a GPU between hosts,
{TO_GPU / 1e9:.0f} GB/s from host memory to a GPU, {HOST / 1e12:.0f} TB of host memory a rank,
{CHARACTERS:.0f} characters a token.
"""


def _rows(tokens: float, known: Measured) -> Iterator[list[str]]:
    for name, shape in MODELS.items():
        for ranks in RANKS:
            parts = seconds(shape, tokens, ranks, known)
            whole = sum(parts.values())
            hours = ROUNDS * whole * ranks / 3600
            shown = f"{hours:,.1f}" if hours >= 1 else f"{hours:.2f}"
            yield [name, str(ranks), _time(whole), shown, *map(_time, parts.values())]


def _times(known: Measured) -> Iterator[str]:
    tokens = SEQUENCES * LENGTH
    yield f"## Time\n\nA round on {SEQUENCES} sequences of {LENGTH} tokens:\n"
    head = ["model", "GPUs", "a round", f"GPU hours, {ROUNDS} rounds", *COLUMNS]
    yield from table(head, _rows(tokens, known))
    yield (
        "Ranks share batches. Each solves every layer's system for itself, brings all weights to "
        "its GPU (on one GPU that is within the measured share), and exchanges every layer's "
        f"normal equations and every batch's sums with all others. There are {tokens // BATCH} "
        f"batches of {BATCH:,} tokens: more GPUs than that gain nothing, and for a set of this "
        "size one host is enough. Sharing is taken as ideal: two ranks on two H200 were "
        f"{known.two_ranks:.2f} times as fast as one in a warm round of a 1B model.\n"
    )
    more = SEQUENCES / known.spread_sequences
    took = known.spread["all"]
    longer = (took - known.spread["solve"]) * more + known.spread["solve"]
    yield (
        "Without weights to move, the 70B model spread over two H200 took "
        f"{_time(took)} for a whole round of all 80 layers on {known.spread_sequences} sequences, "
        f"measured; on {SEQUENCES} that makes {_time(longer)} by proportion.\n"
    )


def _memory(known: Measured) -> Iterator[str]:
    tokens = SEQUENCES * LENGTH
    yield "## Memory, disk, network\n"
    head = ["model", "weights", "a GPU, streamed", "host memory a rank", "disk", "exchanged"]
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
        "Host memory: the weights and both streams' hidden states, and hidden states at all "
        "boundaries for scoring, of which a rank takes as many as fit half of what is free, with "
        "the rest in further groups. Disk: the dense model and five rounds to 20 %, without DVC's "
        "cache, which is as large again where it cannot link; `pruneflow gc` removes what nothing "
        "needs. Exchanged: what a rank sends and receives in a round, all layers' normal "
        "equations and what every batch shows of every unit. Not in the times above: a round also "
        "reads its models' bytes about five times and writes them once "
        "([operations](operations.md#what-the-pipeline-costs)), and compares its result with the "
        "dense model.\n"
    )


def _billion(known: Measured) -> Iterator[str]:
    yield "## A billion tokens\n"
    head = ["model", "GPUs", "a round", f"GPU hours, {ROUNDS} rounds", *COLUMNS]
    yield from table(head, (row for row in _rows(BILLION, known) if row[1] != "1"))
    reading = BILLION * CHARACTERS / known.characters / 3600
    large = SHAPES["70b"]
    own = known.spread["all"] - known.spread["solve"]  # of two GPUs
    held = ROUNDS * 2 * own * BILLION / (known.spread_sequences * LENGTH) / 3600
    states, boundaries = (kept * BILLION * large.hidden for kept in (2 * 2, 2 * large.layers))
    yield (
        f"Reading and cleaning {BILLION * CHARACTERS / 1e9:.0f} GB of text takes {reading:.1f} "
        "hours on two cores and bounded memory (documents are streamed, see "
        f"[data](reference/data.md)); the token blocks are {_bytes(4 * BILLION)}. The 70B model's "
        f"hidden states of both streams are {_bytes(states)} and those at all boundaries "
        f"{_bytes(boundaries)}: scoring takes the set in groups, {groups(large, BILLION / 8):,} of "
        "them on each of eight GPUs, but the refit holds its streams in memory as a whole. Where "
        "GPUs hold the 70B model, two a rank, its round as measured makes that "
        f"{held:,.0f} GPU hours for {ROUNDS} rounds.\n"
    )


def _ending(known: Measured) -> Iterator[str]:
    eight = [_bytes(8 * weight_bytes(MODELS[name])) for name in ("70B", "405B")]
    yield f"""## What breaks first, and what carries it

1. **Host memory.** Every rank holds the whole model in memory of its own, so that eight ranks of
   one host need eight times the weights: {eight[0]} for 70B, {eight[1]} for 405B. Until ranks of a
   host share one copy, run one rank a host, fewer GPUs, or ranks of several GPUs that the model is
   spread over, so that it leaves host memory.
2. **The refit's streams** of very large sets, which are held in memory. They would have to be
   drawn from the set, or kept on disk; neither is built.
3. **The solve**, which every rank repeats and which does not shrink with more GPUs. A layer's
   system could be shared out over ranks; here it is not.
4. **The exchange** of normal equations between hosts, which does not shrink either.
5. **One GPU's memory**, last: normal equations in float64 grow with the square of the neurons,
   not with depth.

Which engine carries what:

- one host, several GPUs: a model spread over them (`compute.placement`), the text shared over
  them (`compute.processes` or `torchrun`, [a GPU](how-to/gpu.md#several-gpus)), or both; several
  hosts on one file system: `torchrun` on each. Ranks on one machine are tested, several machines
  are not;
- many recipes: Dask, a worker a GPU ([sweep](how-to/sweep.md)); recipes share nothing but the
  cache;
- schedules on a cluster: a Prefect work pool of type Kubernetes instead of the process worker,
  with the same deployments; it needs an image with the project and a GPU, and was not tried here;
- artifacts: DVC's remote and MLflow's artifacts on object storage, PostgreSQL beside them
  ([team](how-to/team.md)); `make test-team` runs the pipeline that way, on loopback.
"""
