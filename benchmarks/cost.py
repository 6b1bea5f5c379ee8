"""What a round costs: time by phase, most GPU memory, and the share of the GPU's limit reached.

Llama-shaped models with random weights, which cost what trained ones do. Each case is a process of
its own, or several that share the text, so that peaks are its own. A case is SHAPE:PLACEMENT, with
the number of layers and of sequences behind it where they are not the shape's own and 192: fewer
layers for a model that no host's memory holds, whose streamed rounds take time in proportion. Of
several GPUs the peak is the fullest one's, of several processes the first one's.

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
    """Add how long the block takes, the GPU's work included."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = now(device)
    yield
    seconds[name] = seconds.get(name, 0.0) + now(device) - started


@contextmanager
def watched(peaks: dict[str, float], name: str) -> Iterator[None]:
    """Note the most memory held within the block."""
    reset_peak()
    yield
    peak = peak_gib()
    if peak is not None:
        peaks[name] = max(peaks.get(name, 0.0), peak)


def limits(device: str) -> dict[str, float]:
    """Operations a second of one large matrix product in each type, measured here and now."""
    import torch

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
    """Within it, the phases of `prune_round` are timed, and the memory of each is watched."""
    from pruneflow.pruning import rounds as engine

    names = {
        "compute_scores": "score",
        "normal_equations": "equations",
        "system_of": "solve",
        "solve": "solve",
    }
    before = {name: getattr(engine, name) for name in names}

    def wrapped(phase: str, function: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            with timed(seconds, phase), watched(peaks, phase):
                return function(*given, **named)

        return run

    for name, phase in names.items():
        setattr(engine, name, wrapped(phase, before[name]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(engine, name, function)


class Case(NamedTuple):
    """What is pruned, and how it is run."""

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


class How(NamedTuple):
    """Passes and rounds of a case."""

    rounds: int = 5
    dtype: str = "bfloat16"
    batch_tokens: int = 4096
    backward_batch_tokens: int = 4096
    length: int = 512
    processes: int = 1


def measure(case: Case, how: How, digests: bool = False) -> dict[str, Any]:
    """Prune in rounds; seconds by phase, peaks, and the share of the limit that a phase reaches.

    Args:
        case: what is pruned.
        how: passes and rounds.
        digests: also of the units kept and of the weights, to compare with other placements.
    """
    import torch

    from pruneflow.compute.placement import place_as_asked
    from pruneflow.models.structure import dense_reference, layers_of
    from pruneflow.models.tensor_digest import tensors_digest
    from pruneflow.pruning.rounds import prune_round
    from pruneflow.settings.pipeline import ComputeSettings, PruningSettings, Target

    joined()  # a rank's own GPU is the current one from here on
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = device if case.placement == "whole" else "cpu"
    model = random_model(case.shape, case.layers, how.dtype, start)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    model = place_as_asked(model, ComputeSettings(placement=case.placement), device)
    gpus = len({layer.device for layer in layers_of(model)})
    draw = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(VOCABULARY, (case.sequences, how.length), generator=draw)
    blocks = {str(row): part for row, part in enumerate(tokens.chunk(6))}
    settings = PruningSettings(layout="uniform", neuron_multiple=64)
    dense = dense_reference(model)
    per_round: list[dict[str, float]] = []
    peaks: dict[str, float] = {}
    kept, units = [], []
    for number in range(1, how.rounds + 1):
        seconds: dict[str, float] = {}
        with phases(seconds, peaks), timed(seconds, "all"):
            made = prune_round(
                model,
                blocks,
                Target(ratio=RATIO * number / how.rounds),
                dense,
                settings,
                batch_tokens=how.batch_tokens,
                backward_batch_tokens=how.backward_batch_tokens,
                label=f"{case.name} r{number}",
            )
        model = made.model
        kept.append(layers_of(model)[0].neurons)
        units += [part.tolist() for part in (*made.kept.neurons, *made.kept.heads)]
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
        **how._asdict(),
        "ratio": made.achieved_ratio,
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
    # Of the first round, which later ones of a warm process surpass.
    first = {phase: shares[0] for phase, shares in shares_of_limit(found).items()}
    return {**found, "share_of_limit": first}


def main() -> None:
    """Measure every case in a process of its own, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", required=True)
    for name, default in How()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--digests", action="store_true", help="of what was kept and the weights")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if "PRUNEFLOW_CASE" in os.environ:
        how = How(*(getattr(given, name) for name in How._fields))
        if how.processes > 1 and not is_launched():
            sys.exit(launch(how.processes, *sys.argv))
        found = measure(Case.parse(given.case[-1]), how, given.digests)
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
