"""Ranks that share a calibration set come to what one process does; one that dies is told of."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pruneflow.models.round_record import read_round_record
from tests.pipeline.commands import environment, run
from tests.servers import wait_until

pytestmark = pytest.mark.slow

ROUND = "data/checkpoints/r1"

# A script of a user's: three rounds on as many domains, of five, two and one batches.
SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
from pruneflow.models.structure import dense_reference
from pruneflow.pruning.rounds import prune_round
from pruneflow.settings.pruning import PruningSettings, Target
from pruneflow.compute.ranks import joined

torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval().requires_grad_(False)
draw = torch.Generator().manual_seed(0)
blocks = {
    name: torch.randint(0, 400, (count, 24), generator=draw)
    for name, count in {"a": 10, "b": 3, "c": 1}.items()
}
settings = PruningSettings(
    score=sys.argv[3], layout=sys.argv[4], neuron_multiple=4, min_neuron_share=0.1
)
dense, rounds = dense_reference(model), []
for ratio in (0.1, 0.2, 0.3):
    made = prune_round(
        model, blocks, Target(ratio=ratio), dense, settings, batch_tokens=48,
        backward_batch_tokens=48,
    )
    model = made.model
    units = made.scores[settings.score].units
    rounds.append({
        "kept": [kept.tolist() for kept in (*made.kept.neurons, *made.kept.heads)],
        "scores": {kind: [x.tolist() for x in units[kind]] for kind in units},
        "losses": made.scores[settings.score].losses,
    })
if joined().is_first:
    with open(sys.argv[2], "w") as file:
        json.dump({"size": joined().size, "rounds": rounds}, file)
"""


def torchrun(processes: int, *arguments: str) -> "subprocess.CompletedProcess[str]":
    given = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return run(*given, *arguments)


@pytest.mark.parametrize("score", ["mask_fisher", "obs"])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_two_ranks_keep_what_one_process_keeps(
    score: str, layout: str, tiny_model_directory: Path, tmp_path: Path
) -> None:
    script = tmp_path / "prune.py"
    script.write_text(SCRIPT)
    found = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        given = [str(script), str(tiny_model_directory), str(out), score, layout]
        done = torchrun(processes, *given)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(out.read_text()))
    one, two = found
    assert (one["size"], two["size"]) == (1, 2)
    for alone, shared in zip(one["rounds"], two["rounds"], strict=True):
        assert alone.kept == shared.kept
        assert alone.losses == pytest.approx(shared.losses, rel=1e-6)
        for kind, layers in alone.scores.items():
            for values, others in zip(layers, shared.scores[kind], strict=True):
                largest = max(max(row) for row in values)
                for row, other in zip(values, others, strict=True):
                    assert row == pytest.approx(other, rel=0, abs=1e-6 * largest)


def test_a_stage_of_two_processes_makes_the_round_of_one_and_survives_a_rank_that_dies(
    tiny_pipeline: Callable[..., dict[str, Any]],
) -> None:
    done = run("dvc", "repro", "round@r1")
    assert done.returncode == 0, done.stderr
    kept = Path(ROUND, "statistics/kept.json").read_text()
    alone = read_round_record(Path(ROUND))

    tiny_pipeline(compute={"device": "cpu", "dtype": "float32", "processes": 2})
    stage = ["pruneflow", "stage", "round@r1"]
    child = subprocess.Popen(
        [sys.executable, "-m", *stage],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_until(lambda: _rank(child.pid, "1"))
    os.kill(_rank(child.pid, "1")[0], signal.SIGKILL)
    _, said = child.communicate(timeout=300)
    assert child.returncode == 1
    assert "rank 1 of 2 was killed by signal 9" in said and "Traceback" not in said
    assert read_round_record(Path(ROUND)) == alone  # what was there before is whole

    again = run(*stage)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("r1 score: 1") == 1  # of two ranks one speaks
    shared = read_round_record(Path(ROUND))
    assert Path(ROUND, "statistics/kept.json").read_text() == kept
    assert shared.widths == alone.widths
    assert shared.calibration_losses == pytest.approx(alone.calibration_losses, rel=1e-6)

    tiny_pipeline(rounds=1, compute={"device": "cpu", "dtype": "float32", "processes": 2})
    refused = run("pruneflow", "stage", "round@r2")
    assert refused.returncode == 2
    assert refused.stderr == "error: there is no round r2 in configs/pipeline.yaml: use r1\n"


def _rank(launcher: int, number: str) -> list[int]:
    """The processes of a rank that a launcher started."""
    children = psutil.Process(launcher).children(recursive=True)
    return [child.pid for child in children if child.environ().get("RANK") == number]
