"""What a round costs: time by phase, most GPU memory, and the share of the GPU's speed reached.

Llama-shaped models with random weights, which cost what trained ones do. Each case is a process of
its own, so that peaks are its own. A case is SHAPE:PLACEMENT, with the number of layers and of
sequences behind it where they are not the shape's own and 192: fewer layers for a model that no
host's memory holds, whose streamed rounds take time in proportion.

    python benchmarks/cost.py --case 7b:whole --case 7b:streamed --case 70b:streamed:16:48
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import machine, peak_gib, reset_peak
from pruneflow.artifacts import read_json, write_json

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks/results/cost.json"
RATIO, VOCABULARY = 0.2, 32_000


class Shape(NamedTuple):
    """A Llama's sizes."""

    layers: int
    hidden: int
    neurons: int
    heads: int
    groups: int


SHAPES = {
    "0.1b": Shape(12, 768, 2048, 6, 2),
    "1b": Shape(16, 2048, 8192, 16, 4),
    "3b": Shape(28, 3072, 8192, 24, 8),
    "7b": Shape(32, 4096, 11008, 32, 32),
    "13b": Shape(40, 5120, 13824, 40, 40),
    "70b": Shape(80, 8192, 28672, 64, 8),
}


def random_model(shape: Shape, layers: int, dtype: str, device: str) -> Any:
    """A Llama of this shape whose weights are drawn from one small table, for speed."""
    import torch
    from transformers import LlamaConfig

    from pruneflow.models.loading import empty_model

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.neurons,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.hidden // shape.heads,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        model = empty_model(config, getattr(torch, dtype))
    draw = torch.Generator(device=device).manual_seed(0)
    table = torch.randn(1_000_003, generator=draw, device=device).mul_(0.02).to(model.dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
            continue
        flat = parameter.data.view(-1)
        for start in range(0, len(flat), len(table)):
            part = flat[start : start + len(table)]
            part.copy_(table[: len(part)])
    return model.eval().requires_grad_(False)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add how long the block takes, the GPU's work included."""
    import torch

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    started = now()
    yield
    seconds[name] = seconds.get(name, 0.0) + now() - started


@contextmanager
def watched(peaks: dict[str, float], name: str) -> Iterator[None]:
    """Note the most memory held within the block."""
    reset_peak()
    yield
    peak = peak_gib()
    if peak is not None:
        peaks[name] = max(peaks.get(name, 0.0), peak)


def flops(shape: Shape, layers: int, tokens: int, length: int) -> dict[str, float]:
    """Floating-point operations that a round needs at the least, of the unpruned model.

    Scoring: a forward pass, and a backward pass by activations alone. Refit: the pruned and the
    unpruned stream forward once each, and for the MLP's consumer ``X^T X`` and ``X^T D``.
    """
    block = shape.hidden * (
        3 * shape.neurons + 2 * (shape.heads + shape.groups) * (shape.hidden // shape.heads)
    )
    attention = 2 * shape.hidden * length  # causal: half of 4 d T a token
    forward = tokens * layers * (2 * block + attention)
    head = 2 * tokens * VOCABULARY * shape.hidden
    gram = 2 * tokens * layers * shape.neurons * (shape.neurons + shape.hidden)
    return {"score": 2 * (forward + head), "refit": 2 * forward + gram}


def measure(
    case: str, rounds: int, dtype: str, batch_tokens: int, backward_batch_tokens: int, length: int
) -> dict[str, Any]:
    """Prune in rounds; seconds by phase, peaks, and floating-point operations a second."""
    import torch

    from pruneflow.config import PruningSettings, Target
    from pruneflow.models.placement import place
    from pruneflow.pruning import rounds as engine

    name, placement, *numbers = case.split(":")
    shape = SHAPES[name]
    layers = int(numbers[0]) if numbers else shape.layers
    sequences = int(numbers[1]) if len(numbers) > 1 else 192
    device = "cuda" if torch.cuda.is_available() else "cpu"
    streamed = placement == "streamed"
    model = random_model(shape, layers, dtype, "cpu" if streamed else device)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    model = place(model, device, streamed)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (sequences, length), generator=draw)
    blocks = {str(row): part for row, part in enumerate(tokens.chunk(6))}
    settings = PruningSettings(layout="uniform", neuron_multiple=64)
    dense = engine.DenseShape.of(model)
    per_round, scored, cut = [], engine.compute_scores, engine._cut
    peaks: dict[str, float] = {}
    for number in range(1, rounds + 1):
        seconds: dict[str, float] = {}

        def score(*given: Any, seconds: dict[str, float] = seconds, **named: Any) -> Any:
            with timed(seconds, "score"), watched(peaks, "score"):
                return scored(*given, **named)

        def refit(*given: Any, seconds: dict[str, float] = seconds, **named: Any) -> Any:
            with timed(seconds, "refit"), watched(peaks, "refit"):
                return cut(*given, **named)

        engine.compute_scores, engine._cut = score, refit
        with timed(seconds, "all"):
            made = engine.prune_round(
                model,
                blocks,
                Target(ratio=RATIO * number / rounds),
                dense,
                settings,
                batch_tokens=batch_tokens,
                backward_batch_tokens=backward_batch_tokens,
                label=f"{case} r{number}",
            )
        model = made.model
        per_round.append(seconds)
    engine.compute_scores, engine._cut = scored, cut
    peak = max(peaks.values(), default=None)
    needed = flops(shape, layers, tokens.numel(), length)
    first = per_round[0]
    return {
        "case": case,
        "shape": shape._asdict(),
        "layers": layers,
        "dtype": dtype,
        "sequences": sequences,
        "length": length,
        "batch_tokens": batch_tokens,
        "backward_batch_tokens": backward_batch_tokens,
        "ratio": made.achieved_ratio,
        "rounds": per_round,
        "seconds": sum(seconds["all"] for seconds in per_round),
        "weights_gib": weights / 2**30,
        "peak_gib": peaks,
        "peak_over_weights": None if peak is None else peak * 2**30 / weights,
        "tflops_of_first_round": {key: needed[key] / first[key] / 1e12 for key in needed},
    }


def main() -> None:
    """Measure every case in a process of its own, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--backward-batch-tokens", type=int, default=1024)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if "PRUNEFLOW_CASE" in os.environ:
        case = given.case[-1]
        found = measure(
            case,
            given.rounds,
            given.dtype,
            given.batch_tokens,
            given.backward_batch_tokens,
            given.length,
        )
        write_json(given.out, found)
        return
    import torch

    results: list[Any] = []
    facts = machine("cuda" if torch.cuda.is_available() else "cpu")
    for case in given.case:
        part = given.out.with_suffix(".part.json")
        command = [sys.executable, *sys.argv, "--case", case, "--out", str(part)]
        done = subprocess.run(command, env={**os.environ, "PRUNEFLOW_CASE": case})
        if done.returncode:
            results.append({"case": case, "failed": done.returncode})
        else:
            results.append(read_json(part))
            part.unlink()
        print(json.dumps(results[-1], indent=2), flush=True)
        write_json(given.out, {"machine": facts, "cases": results})


if __name__ == "__main__":
    main()
