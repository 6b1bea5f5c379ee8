"""Cost of a round: time by phase, peak GPU memory, and the share of the GPU's peak throughput.

The models are Llamas with random weights, which cost the same as trained ones. Each case runs in
its own process (or several data-parallel ones), so that peaks are separate. A case is
SHAPE:PLACEMENT[:LAYERS[:SEQUENCES]], by default with all layers of the shape and 192 sequences;
streamed rounds of a model larger than host memory can be measured with fewer layers, because their
time is proportional. Peaks are of the fullest GPU, and of the first process.

    python benchmarks/cost.py --case 7b:whole --case 7b:streamed --case 70b:streamed:16:48
    python benchmarks/cost.py --rounds 1 --case 70b:spread:80:48
    python benchmarks/cost.py --rounds 2 --digests --processes 2 --case 1b:whole --out FILE
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import LlamaConfig

from pruneflow.compute.placement import place_by_settings
from pruneflow.models.loading import empty_model
from pruneflow.models.structure import dense_reference, layers_of
from pruneflow.models.tensor_digest import tensors_digest
from pruneflow.pruning import rounds as engine
from pruneflow.pruning.rounds import prune_round
from pruneflow.settings.pipeline import ComputeSettings, PruningSettings, Target

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import machine, now, peak_gib, product_rate, reset_peak
from benchmarks.operations import RATIO, SHAPES, VOCABULARY, Shape, shares_of_limit
from pruneflow.artifacts import read_json, sha256_json, write_json
from pruneflow.compute.ranks import joined, launch
from pruneflow.compute.torchrun import is_launched
from pruneflow.settings.pipeline import Placement

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks/results/cost.json"
SEED = 0


def random_model(shape: Shape, layers: int, dtype: str, device: str) -> Any:
    """A Llama of this shape with random weights, repeated from a small table for speed."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.neurons,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        head_dim=shape.head_dim,
        tie_word_embeddings=False,
    )
    with torch.device(device):
        model = empty_model(config, getattr(torch, dtype))
    draw = torch.Generator().manual_seed(SEED)  # the same numbers on every device
    table = torch.randn(1_000_003, generator=draw).mul_(0.02).to(device, model.dtype)
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
    """Add the duration of the block, including the GPU's work."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = now(device)
    yield
    seconds[name] = seconds.get(name, 0.0) + now(device) - started


@contextmanager
def tracked(peaks: dict[str, float], name: str) -> Iterator[None]:
    """Record the peak memory within the block."""
    reset_peak()
    yield
    peak = peak_gib()
    if peak is not None:
        peaks[name] = max(peaks.get(name, 0.0), peak)


def limits(device: str) -> dict[str, float]:
    """Measured operations per second of a large matrix product in each data type."""
    side = 8192 if device == "cuda" else 1024
    torch.set_float32_matmul_precision("high")
    found = {
        "half": product_rate(device, "bfloat16", side),
        "single": product_rate(device, "float32", side),
        "double": product_rate(device, "float64", side // 2),
    }
    torch.set_float32_matmul_precision("highest")
    return found


@contextmanager
def phases(seconds: dict[str, float], peaks: dict[str, float]) -> Iterator[None]:
    """Measure time and peak memory of the phases of `prune_round` within the block."""
    names = {
        "compute_scores": "score",
        "normal_equations": "equations",
        "system_of": "solve",
        "solve": "solve",
    }
    before = {name: getattr(engine, name) for name in names}

    def wrapped(phase: str, function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with timed(seconds, phase), tracked(peaks, phase):
                return function(*args, **kwargs)

        return run

    for name, phase in names.items():
        setattr(engine, name, wrapped(phase, before[name]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(engine, name, function)


class Case(NamedTuple):
    """A model, its calibration data and its placement."""

    name: str
    shape: Shape
    layers: int
    sequences: int = 192
    placement: Placement = "whole"

    @classmethod
    def parse(cls, text: str) -> "Case":
        """SHAPE:PLACEMENT[:LAYERS[:SEQUENCES]]."""
        name, placement, *numbers = text.split(":")
        shape = SHAPES[name]
        layers = int(numbers[0]) if numbers else shape.layers
        sequences = int(numbers[1]) if len(numbers) > 1 else 192
        return cls(text, shape, layers, sequences, cast(Placement, placement))


class RunSettings(NamedTuple):
    """Rounds and batch sizes of a case."""

    rounds: int = 5
    dtype: str = "bfloat16"
    batch_tokens: int = 4096
    backward_batch_tokens: int = 4096
    length: int = 512
    processes: int = 1


def pruned_rounds(
    model: Any, case: Case, settings: RunSettings, peaks: dict[str, float]
) -> Iterator[tuple[Any, dict[str, float]]]:
    """Prune in rounds; yields the result of each and its seconds by phase, and updates `peaks`."""
    draw = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(VOCABULARY, (case.sequences, settings.length), generator=draw)
    blocks = {str(row): part for row, part in enumerate(tokens.chunk(6))}
    pruning = PruningSettings(layout="uniform", neuron_multiple=64)
    dense = dense_reference(model)
    for number in range(1, settings.rounds + 1):
        seconds: dict[str, float] = {}
        with phases(seconds, peaks), timed(seconds, "all"):
            result = prune_round(
                model,
                blocks,
                Target(ratio=RATIO * number / settings.rounds),
                dense,
                pruning,
                batch_tokens=settings.batch_tokens,
                backward_batch_tokens=settings.backward_batch_tokens,
                label=f"{case.name} r{number}",
            )
        model = result.model
        yield result, seconds


def measure(case: Case, settings: RunSettings, digests: bool = False) -> dict[str, Any]:
    """Prune in rounds; returns seconds, peaks and the share of the limit reached, by phase.

    Args:
        case: the model and its placement.
        settings: rounds and batch sizes.
        digests: whether to add digests of kept units and weights, to compare placements.
    """
    joined()  # sets the rank's own GPU as the current one
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = device if case.placement == "whole" else "cpu"
    model = random_model(case.shape, case.layers, settings.dtype, start)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    model = place_by_settings(model, ComputeSettings(placement=case.placement), device)
    gpus = len({layer.device for layer in layers_of(model)})
    per_round: list[dict[str, float]] = []
    peaks: dict[str, float] = {}
    kept, units = [], []
    for result, seconds in pruned_rounds(model, case, settings, peaks):
        model = result.model
        kept.append(layers_of(model)[0].neurons)
        units += [part.tolist() for part in (*result.kept.neurons, *result.kept.heads)]
        per_round.append(seconds)
    peak = max(peaks.values(), default=None)
    found = {
        "machine": machine(device),
        "seed": SEED,
        "case": case.name,
        "shape": case.shape._asdict(),
        "layers": case.layers,
        "sequences": case.sequences,
        "gpus": gpus,
        **settings._asdict(),
        "ratio": result.achieved_ratio,
        "neurons": kept,
        "digests": {
            "units": sha256_json(units),
            "weights": tensors_digest(model.state_dict()),
        }
        if digests
        else None,
        "seconds_by_round": per_round,
        "seconds": sum(seconds["all"] for seconds in per_round),
        "weights_gib": weights / 2**30,
        "peak_gib": peaks,
        "peak_over_weights": None if peak is None else peak * 2**30 / weights,
        "limits_tflops": {kind: value / 1e12 for kind, value in limits(device).items()},
    }
    # Of the first round, which is slower than later ones in a warm process.
    first = {phase: shares[0] for phase, shares in shares_of_limit(found).items()}
    return {**found, "share_of_limit": first}


def main() -> None:
    """Measure each case in its own process, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", required=True)
    for name, default in RunSettings()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--digests", action="store_true", help="of kept units and weights")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if "PRUNEFLOW_CASE" in os.environ:
        settings = RunSettings(*(getattr(given, name) for name in RunSettings._fields))
        if settings.processes > 1 and not is_launched():
            sys.exit(launch(settings.processes, *sys.argv))
        found = measure(Case.parse(given.case[-1]), settings, given.digests)
        if joined().is_first:
            write_json(given.out, found)
        joined().leave()
        return
    results: list[Any] = []
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
        write_json(given.out, {"cases": results})


if __name__ == "__main__":
    main()
