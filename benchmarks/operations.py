"""Shapes of models, and the number of operations in a round."""

import math
from typing import Any, NamedTuple

RATIO, VOCABULARY = 0.2, 32_000


class Shape(NamedTuple):
    """Sizes of a Llama."""

    layers: int
    hidden: int
    neurons: int
    heads: int
    groups: int

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden // self.heads

    @property
    def block(self) -> int:
        """Weights of one block's matrices."""
        heads = 2 * (self.heads + self.groups) * self.head_dim
        return self.hidden * (3 * self.neurons + heads)


SHAPES = {
    "0.1b": Shape(12, 768, 2048, 6, 2),
    "1b": Shape(16, 2048, 8192, 16, 4),
    "3b": Shape(28, 3072, 8192, 24, 8),
    "7b": Shape(32, 4096, 11008, 32, 32),
    "13b": Shape(40, 5120, 13824, 40, 40),
    "70b": Shape(80, 8192, 28672, 64, 8),
    "405b": Shape(126, 16384, 53248, 128, 8),
}


class Operations(NamedTuple):
    """Minimum floating-point operations of a phase, by precision."""

    half: float = 0.0
    single: float = 0.0
    double: float = 0.0

    def seconds(self, limits: dict[str, float]) -> float:
        """Duration at the given limits, in operations per second."""
        return sum(done / limits[kind] for kind, done in self._asdict().items() if done)


def work(
    shape: Shape, layers: int, sequences: int, length: int, kept: int
) -> dict[str, Operations]:
    """Operations of the first round in bfloat16 that removes MLP neurons only, by phase.

    ``score``: a forward pass, and a backward pass for activations only; recomputation is not
    counted. ``equations``: a forward pass of the pruned and the unpruned stream, and ``X^T X`` and
    ``X^T D`` of the MLP's consumer in float32. ``solve``: Cholesky and two triangular solves in
    float64.
    """
    tokens = sequences * length
    attention = 2 * shape.hidden * length  # causal: half of 4 d T a token
    forward = tokens * layers * (2 * shape.block + attention)
    head = 2 * tokens * VOCABULARY * shape.hidden
    gram = 2 * tokens * layers * shape.neurons * (shape.neurons + shape.hidden)
    solved = kept**3 / 3 + 2 * kept**2 * shape.hidden
    return {
        "score": Operations(half=2 * (forward + head)),
        "equations": Operations(half=2 * forward, single=gram),
        "solve": Operations(double=layers * solved),
    }


def neurons_after(shape: Shape, ratio: float) -> int:
    """Neurons of each layer after removing this share of the block weights, in steps of 64."""
    removed = ratio * shape.block / (3 * shape.hidden)
    return shape.neurons - 64 * math.ceil(removed / 64)


def shares_of_limit(found: dict[str, Any]) -> dict[str, list[float]]:
    """Share of the limits reached in each round, by phase, from a result of `benchmarks.cost`.

    Widths that were not recorded are those of rounds that remove neurons only.
    """
    shape, ends = Shape(**found["shape"]), found.get("neurons")
    reached = {kind: value * 1e12 for kind, value in found["limits_tflops"].items()}
    layers, sequences, length = (found[name] for name in ("layers", "sequences", "length"))
    shares: dict[str, list[float]] = {}
    before = shape.neurons
    for number, seconds in enumerate(found["seconds_by_round"], start=1):
        goal = RATIO * number / found["rounds"]
        after = ends[number - 1] if ends else neurons_after(shape, goal)
        needed = work(shape._replace(neurons=before), layers, sequences, length, after)
        for phase, operations in needed.items():
            shares.setdefault(phase, []).append(operations.seconds(reached) / seconds[phase])
        before = after
    return shares
