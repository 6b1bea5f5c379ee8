"""Damaged artifacts, a full disk: found before they are used, and rebuilt or named in one line."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pruneflow.errors import DamagedArtifactError
from pruneflow.stages import run_stage_by_name
from tasks.dvc.repair import touch_damaged_files
from tests.pipeline.commands import environment, leftovers, outs, repro, run

pytestmark = pytest.mark.slow

FULL_DISK = ("model", "documents", "calibration", "round@r1", "select", "report")
# In one process, because imports take longer than stages.
ON_A_FULL_DISK = """
import resource, sys
from pruneflow.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
for stage in sys.argv[1:]:
    sys.argv[1:] = ["stage", stage]
    print(f"{stage} ended with {main()}", file=sys.stderr)
"""

# What is damaged, and a stage that reads it: it must notice though size and time are as before.
READ_BY = {
    "data/checkpoints/dense/model.safetensors": "round@r1",
    "data/questions/piqa.jsonl": "baseline",
    "data/calibration/documents/documents.parquet": "validate",
    "data/calibration/set/blocks.safetensors": "round@r1",
    "data/calibration/held_out/blocks.safetensors": "evaluation",
    "data/checkpoints/r1/model.safetensors": "round@r2",
    "data/checkpoints/r2/model.safetensors": "select",
    "data/model/model.safetensors": "evaluation",
}


def artifacts() -> list[Path]:
    """The largest file of every out."""
    places = [Path("data/questions"), *Path("data/calibration").iterdir()]
    places += [*Path("data/checkpoints").iterdir(), Path("data/model")]
    places += [path for path in Path("data/reports").iterdir() if path.name != "decision.json"]
    files = [[path] if path.is_file() else [*path.rglob("*")] for path in places]
    return [
        max((path for path in each if path.is_file()), key=lambda path: path.stat().st_size)
        for each in files
    ]


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def flip_quietly(path: Path) -> None:
    """Change one bit, as a failing disk does: size and time stay the same."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damage_a_full_disk_and_a_dead_lock_are_found_and_harm_nothing(
    finished_pipeline: dict[str, Any],
) -> None:
    made = outs()
    _damage_is_rebuilt_by_dvc_or_named_by_the_stage_that_reads_it(made)
    _small_files_that_changed_quietly_are_rebuilt(made)
    _a_full_disk_is_one_line_and_the_earlier_result_stays(made)
    _a_lock_of_dvc_left_by_a_dead_process_stops_nothing(made)
    assert outs() == made and repro() == []


def _damage_is_rebuilt_by_dvc_or_named_by_the_stage_that_reads_it(
    made: dict[str, str],
) -> None:
    for path, damage in zip(artifacts(), itertools.cycle((flip, truncate, Path.unlink))):
        damage(path)
    repro()
    assert outs() == made
    assert repro() == []

    for name, stage in READ_BY.items():
        path, good = Path(name), Path("good")
        shutil.copy2(path, good)
        flip_quietly(path)
        with pytest.raises(DamagedArtifactError, match=str(path.parent)):
            run_stage_by_name(stage)
        shutil.copy2(good, path)
    assert outs() == made


def _small_files_that_changed_quietly_are_rebuilt(made: dict[str, str]) -> None:
    """DVC does not see them, and no digest is within them: a gate would read the wrong figure."""
    names = ("data/reports/evaluation.json", "data/checkpoints/r1/round.json")
    for name in names:
        flip_quietly(Path(name))
    assert repro() == []
    lines = touch_damaged_files()
    assert [line.split()[0] for line in lines] == sorted(names)
    repro()
    assert outs() == made and touch_damaged_files() == []


def _a_full_disk_is_one_line_and_the_earlier_result_stays(made: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, *FULL_DISK],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    ends = [line for line in lines if " ended with " in line]
    assert ends == [f"{stage} ended with 2" for stage in FULL_DISK], done.stderr
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == len(FULL_DISK)
    assert all("free some space" in line for line in errors), errors
    assert outs() == made
    assert repro() == []
    assert not leftovers()


def _a_lock_of_dvc_left_by_a_dead_process_stops_nothing(made: dict[str, str]) -> None:
    holder = {str(Path("data/model").absolute()): {"pid": 4194303, "cmd": "gone"}}
    Path(".dvc/tmp/rwlock").write_text(json.dumps({"write": holder}))
    Path(".dvc/tmp/lock").write_text("4194303")
    shutil.rmtree("data/model")
    done = run("dvc", "repro")
    assert done.returncode == 0, done.stderr
    assert outs() == made
