"""Ranks that share a calibration set come to what one process does; one that dies is told of."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pruneflow.models.round_record import read_round_record
from pruneflow.settings.pipeline import parse_settings, write_settings
from tests.pipeline.commands import environment, run
from tests.servers import wait_until

pytestmark = pytest.mark.slow

ROUND = "data/checkpoints/r1"

# A script of a user's: for every score and layout, three rounds on as many domains, of five, two
# and one batches.
SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
from pruneflow.models.structure import dense_reference
from pruneflow.pruning.rounds import prune_round
from pruneflow.settings.pruning import PruningSettings, Target
from pruneflow.compute.ranks import joined

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
blocks = {
    name: torch.randint(0, 400, (count, 24), generator=draw)
    for name, count in {"a": 10, "b": 3, "c": 1}.items()
}

def pruned(score, layout):
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval().requires_grad_(False)
    settings = PruningSettings(
        score=score, layout=layout, neuron_multiple=4, min_neuron_share=0.1
    )
    dense = dense_reference(model)
    for ratio in (0.1, 0.2, 0.3):
        made = prune_round(
            model, blocks, Target(ratio=ratio), dense, settings, batch_tokens=48,
            backward_batch_tokens=48,
        )
        model = made.model
        units = made.scores[score].units
        yield {
            "kept": [kept.tolist() for kept in (*made.kept.neurons, *made.kept.heads)],
            "scores": {kind: [x.tolist() for x in units[kind]] for kind in units},
            "losses": made.scores[score].losses,
        }

rounds = {
    f"{score} {layout}": list(pruned(score, layout))
    for score in ("mask_fisher", "obs")
    for layout in ("uniform", "per_layer")
}
if joined().is_first:
    with open(sys.argv[2], "w") as file:
        json.dump({"size": joined().size, "rounds": rounds}, file)
"""


def pruned_by(processes: int, model: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rounds of the script, run by as many ranks, by score and layout."""
    script, out = folder / "prune.py", folder / f"{processes}.json"
    script.write_text(SCRIPT)
    ranks = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = run(*ranks, str(script), str(model), str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["size"] == processes
    rounds: dict[str, list[dict[str, Any]]] = found["rounds"]
    return rounds


def test_two_ranks_keep_what_one_process_keeps(tiny_model_directory: Path, tmp_path: Path) -> None:
    one, two = (pruned_by(processes, tiny_model_directory, tmp_path) for processes in (1, 2))
    assert len(one) == 4
    for settings, rounds in one.items():
        for alone, shared in zip(rounds, two[settings], strict=True):
            assert alone["kept"] == shared["kept"], settings
            assert alone["losses"] == pytest.approx(shared["losses"], rel=1e-6), settings
            for kind, layers in alone["scores"].items():
                for values, others in zip(layers, shared["scores"][kind], strict=True):
                    largest = max(max(row) for row in values)
                    for row, other in zip(values, others, strict=True):
                        assert row == pytest.approx(other, rel=0, abs=1e-6 * largest), settings


def test_a_stage_of_two_processes_makes_the_round_of_one_and_survives_a_rank_that_dies(
    finished_pipeline: dict[str, Any],
) -> None:
    kept = Path(ROUND, "statistics/kept.json").read_text()
    alone = read_round_record(Path(ROUND))

    values = finished_pipeline
    values["compute"]["processes"] = 2
    write_settings(parse_settings(values, "test"))
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
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 1
    assert "rank 1 of 2 was killed by signal 9" in errors and "Traceback" not in errors
    assert read_round_record(Path(ROUND)) == alone  # the earlier round is complete

    again = run(*stage)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("r1 score: 1") == 1  # of two ranks one speaks
    shared = read_round_record(Path(ROUND))
    assert Path(ROUND, "statistics/kept.json").read_text() == kept
    assert shared.widths == alone.widths
    assert shared.calibration_losses == pytest.approx(alone.calibration_losses, rel=1e-6)

    refused = run("pruneflow", "stage", "round@r3")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: there is no round r3 in configs/pipeline.yaml: use r1")
    assert refused.stderr.count("\n") == 1


def _rank(launcher: int, number: str) -> list[int]:
    """The processes of a rank that a launcher started."""
    children = psutil.Process(launcher).children(recursive=True)
    return [child.pid for child in children if child.environ().get("RANK") == number]
