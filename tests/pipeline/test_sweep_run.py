"""The sweep on a real Prefect server and Dask workers, and what a user sees of it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from flows.pipeline import pipeline
from flows.sweep import sweep
from pruneflow.artifacts import read_json, sha256_file
from pruneflow.paths import DVC_LOCK, SUMMARY, SWEEP, SWEEP_TABLE
from pruneflow.settings.pipeline import load_settings
from tasks.tracking.store import connect
from tests.pipeline.toy import DVC, Workspace
from tests.servers import wait_until

pytestmark = pytest.mark.slow

RECIPES = {
    "as_it_is": {},
    "deep": {"ratio": 0.4, "rounds": 2},
    "broken": {"rounds": 4},  # the others have no round r4, which is told to fail
}

# Stages also note in one file when they begin and end, the first rounds of two recipes wait for
# each other, and a smaller model has fewer parameters and a higher perplexity.
NOTES = """
import atexit
notes = Path(os.environ["TOY_NOTES"])

def note(what):
    with notes.open("a") as file:
        file.write(json.dumps([Path.cwd().name, sys.argv[1], what, time.time()]) + "\\n")

def meet():
    deadline = time.time() + 300
    while len({line.split(",")[0] for line in notes.open() if '"r1"' in line}) < 2:
        if time.time() > deadline:
            raise PruneflowError("no other recipe is at work")
        time.sleep(0.05)

note("begins")
atexit.register(note, "ends")
"""
MEET = """
    if name == "r1" and "TOY_MEET" in os.environ:
        meet()
    if name == "latency":
        write_json(Path("data/timing.json"), {})
    elif name == "calibration":
"""
FIGURES = """        ratio = settings.rounds[settings.final_round].ratio
        summary["parameters"]["pruned"] = round(100 * (1 - ratio))
        summary["perplexity"]["mean_ratio"] = {"value": 1 + ratio, "low": 1.0, "high": 2.0}
        folders = {}
"""


class Sweep:
    """A toy workspace with recipes, and what its stages noted."""

    def __init__(self, workspace: Workspace, notes: Path) -> None:
        self.workspace, self.notes = workspace, notes

    def set(self, **recipes: dict) -> None:
        Path("configs/sweep.yaml").write_text(yaml.safe_dump({"recipes": recipes}))

    def ran(self) -> list[tuple[str, str, float, float]]:
        """Recipe, stage, begin and end of every stage that was executed; forgets them."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        begun: dict[tuple[str, str], float] = {}
        done = []
        for recipe, stage, what, when in map(json.loads, lines):
            if what == "begins":
                begun[recipe, stage] = when
            else:
                done.append((recipe, stage, begun[recipe, stage], when))
        return done


@pytest.fixture
def toy(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    code = Path("toy.py").read_text().replace("\ndef model(", NOTES + "\ndef model(", 1)
    code = code.replace('\n    if name == "calibration":\n', MEET, 1)
    code = code.replace("        folders = {}\n", FIGURES, 1)
    Path("toy.py").write_text(code)
    graph = yaml.safe_load(DVC)
    stages = graph["stages"]
    stages["calibration"]["deps"] = ["toy.py"]
    stages["latency"] = {
        "cmd": "python toy.py latency",
        "deps": ["data/model"],
        "outs": ["data/timing.json"],
    }
    stages["report"]["deps"].append("data/timing.json")
    Path("dvc.yaml").write_text(yaml.safe_dump(graph))
    notes = tmp_path / "notes"
    monkeypatch.setenv("TOY_NOTES", str(notes))
    monkeypatch.setenv("PYTHONPATH", workspace.environment["PYTHONPATH"])
    workspace.environment["TOY_NOTES"] = str(notes)
    made = Sweep(workspace, notes)
    made.set(**RECIPES)
    return made


def is_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except (psutil.Error, OSError):
        return False


def by_recipe(rows: list[dict]) -> dict[str, dict]:
    return {row["recipe"]: row for row in rows}


def test_recipes_run_side_by_side_and_one_that_fails_does_not_sink_the_others(
    toy: Sweep, server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("fail-r4").touch()
    monkeypatch.setenv("TOY_MEET", "1")
    state = sweep(return_state=True)
    assert state.is_completed() and state.message == "2 of 3 recipes finished"
    rows = by_recipe(state.result())
    assert rows["broken"]["error"] == "the toy stage r4 was told to fail: delete fail-r4"
    assert rows["as_it_is"]["figures"]["parameters"] == 80
    assert rows["deep"]["figures"]["perplexity_ratio"]["value"] == 1.4
    assert {name for name, row in rows.items() if row["pareto"]} == {"as_it_is", "deep"}
    assert by_recipe(read_json(SWEEP_TABLE)["recipes"]) == rows

    ran = toy.ran()
    assert [recipe for recipe, stage, *_ in ran if stage == "calibration"] == ["as_it_is"]
    timed = [each for each in ran if each[1] == "latency"]
    assert sorted(recipe for recipe, *_ in timed) == ["as_it_is", "deep"]
    for latency in timed:
        _, _, begin, end = latency
        others = [each for each in ran if each != latency]
        assert not [each for each in others if each[2] < end and begin < each[3]]

    client = connect(load_settings().registry)
    (experiment,) = [e for e in client.search_experiments() if e.name == "pruneflow"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == set(RECIPES)
    parents = {run.data.tags["mlflow.parentRunId"] for run in children.values()}
    assert parents == {parent.info.run_id}
    assert {name: run.info.status for name, run in children.items()} == {
        "as_it_is": "FINISHED",
        "deep": "FINISHED",
        "broken": "FAILED",
    }
    assert "told to fail" in children["broken"].data.tags["error"]
    assert children["deep"].data.params["rounds.r2.ratio"] == "0.4"
    assert children["deep"].data.metrics["parameters/pruned"] == 60
    assert children["deep"].data.tags["pareto"] == "true"
    kept = {item.path for item in client.list_artifacts(parent.info.run_id, "sweep")}
    assert kept == {"sweep/sweep.json", "sweep/sweep.yaml", "sweep/table.json"}
    assert parent.data.metrics["recipes_failed"] == 1

    Path("fail-r4").unlink()
    rows = by_recipe(sweep(return_state=True).result())
    assert rows["broken"]["error"] is None
    ran = [(recipe, stage) for recipe, stage, *_ in toy.ran()]
    # Its model has as_it_is's bytes, whose speed is measured already.
    assert ran == [("broken", stage) for stage in ("r4", "select", "report")]
    assert by_recipe(sweep(return_state=True).result()) == rows
    assert toy.ran() == []


def test_a_recipe_takes_what_the_last_run_made_and_can_become_the_next_run(
    toy: Sweep, server: None
) -> None:
    toy.set(as_it_is={}, deep={"ratio": 0.4, "rounds": 2})
    pipeline()
    toy.ran()
    before = {path: sha256_file(path) for path in (DVC_LOCK, SUMMARY)}
    assert by_recipe(sweep(return_state=True).result())["as_it_is"]["error"] is None
    assert {recipe for recipe, *_ in toy.ran()} == {"deep"}
    assert {path: sha256_file(path) for path in before} == before

    for name in ("configs/pipeline.yaml", "dvc.lock"):
        Path(name).write_bytes((SWEEP / "deep" / name).read_bytes())
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q"], check=True)
    assert pipeline(return_state=True).result().summary.parameters.pruned == 60
    assert toy.ran() == []


def test_a_changed_recipe_runs_what_follows_from_the_change(toy: Sweep, server: None) -> None:
    toy.set(one={"ratio": 0.2}, other={"ratio": 0.4})
    sweep()
    toy.ran()
    toy.set(one={"ratio": 0.2}, other={"ratio": 0.3})
    sweep()
    changed = [(recipe, stage) for recipe, stage, *_ in toy.ran()]
    assert changed == [("other", stage) for stage in ("r1", "r2", "select", "latency", "report")]
    toy.set(one={"ratio": 0.2}, other={"ratio": 0.4})  # as it was: all of it is in DVC's cache
    sweep()
    assert toy.ran() == []


def test_the_command_shows_the_table_and_exits_0_where_a_recipe_finished(toy: Sweep) -> None:
    Path("fail-r4").touch()
    done = toy.workspace.pruneflow("sweep", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "as_it_is *" in done.stdout and "data/reports/sweep.json" in done.stdout
    assert "broken failed: the toy stage r4 was told to fail" in done.stdout
    assert "deep: round@r2" in done.stderr
    for noise in ("Traceback", "Finished in state", "distributed", "Dask"):
        assert noise not in done.stderr + done.stdout


def test_the_command_exits_1_when_no_recipe_finished(toy: Sweep) -> None:
    Path("fail-calibration").touch()
    done = toy.workspace.pruneflow("sweep")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "error: no recipe finished: as_it_is: the toy stage calibration was told"
    )
    assert "Traceback" not in done.stderr


def test_bad_recipes_are_one_line_and_exit_code_2_before_anything_starts(toy: Sweep) -> None:
    toy.set(small={"ratoi": 0.3})
    done = toy.workspace.pruneflow("sweep")
    assert done.returncode == 2
    assert done.stderr == (
        "error: configs/sweep.yaml: unknown key recipes.small.ratoi: remove it or correct its "
        "spelling\n"
    )
    assert not SWEEP.exists()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_leaves_no_stage_behind(toy: Sweep, sign: signal.Signals) -> None:
    Path("slow-r1").touch()
    with toy.workspace.start("-m", "flows.cli", "sweep") as process:
        two_are_at_work = wait_until(lambda: len(list(SWEEP.glob("*/pids.json"))) == 2, 180)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=120)
    assert two_are_at_work
    assert process.returncode == 130
    assert "Traceback" not in errors and "failed" not in errors
    # Nor has the third recipe begun in the place of those that were ended.
    assert not [each for each in psutil.process_iter() if is_in(each, SWEEP.absolute())]
