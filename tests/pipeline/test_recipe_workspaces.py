"""A recipe's workspace: its own settings and outputs, everything else the project's."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from pruneflow.errors import InputError
from pruneflow.paths import SWEEP
from pruneflow.settings.pipeline import PipelineSettings, load_settings, parse_settings
from tasks.dvc.repro import stage_order
from tasks.sweep.recipes import clear_recipes
from tasks.sweep.workspaces import prepare, to_share
from tests.pipeline.toy import REPOSITORY, SETTINGS, Workspace


def settings(**sections: dict) -> PipelineSettings:
    values = {**SETTINGS, **sections}
    return parse_settings({**values, "final_round": list(values["rounds"])[-1]}, Path("a recipe"))


def depend(*paths: str) -> None:
    """Let the first stage read something: DVC caches nothing of a stage that reads nothing."""
    graph = yaml.safe_load(Path("dvc.yaml").read_text())
    graph["stages"]["calibration"]["deps"] = list(paths)
    Path("dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))


DEEP = {"r1": {"parent": "dense", "ratio": 0.1}, "r2": {"parent": "r1", "ratio": 0.4}}
LONG = {**DEEP, "r3": {"parent": "r2", "ratio": 0.5}}


def test_a_workspace_has_its_own_settings_and_links_to_what_it_reads(workspace: Workspace) -> None:
    (made,) = prepare({"deep": settings(rounds=DEEP)})
    assert made.folder == SWEEP / "deep"
    assert load_settings(made.folder / "configs/pipeline.yaml").rounds["r2"].ratio == 0.4
    assert (made.folder / "summary.json").readlink() == Path("summary.json").absolute()
    assert not (made.folder / "data").is_symlink() and not (made.folder / "configs").is_symlink()
    assert (made.folder / "dvc.yaml").readlink() == Path("dvc.yaml").absolute()


def test_links_follow_the_project_and_what_is_read_from_data_is_linked(
    workspace: Workspace,
) -> None:
    depend("data/text", "configs/domains.yaml")
    Path("data/text").mkdir(parents=True)
    Path("data/reports").mkdir()
    Path("data/reports/old.json").touch()
    Path("extra.txt").touch()
    (made,) = prepare({"deep": settings(rounds=DEEP)})
    assert (made.folder / "data/text").readlink() == Path("data/text").absolute()
    assert (made.folder / "configs/domains.yaml").is_symlink()
    assert not (made.folder / "data/reports").exists()
    assert (made.folder / "extra.txt").is_symlink()
    Path("extra.txt").unlink()
    prepare({"deep": settings(rounds=DEEP)})
    assert not (made.folder / "extra.txt").is_symlink()


def test_a_model_at_a_relative_path_outside_is_refused(workspace: Workspace) -> None:
    Path("../model").mkdir()
    with pytest.raises(InputError, match=r"model.source is ../model.* absolute path"):
        prepare({"far": settings(model={"name": "toy", "source": "../model"})})


def test_what_recipes_have_in_common_is_made_once_before_them(workspace: Workspace) -> None:
    made = prepare({"deep": settings(rounds=DEEP), "long": settings(rounds=LONG)})
    shared = {name: set(stages) for name, stages in to_share(made).items()}
    assert shared == {"deep": {"environment", "calibration", "round@r1", "round@r2"}}
    assert to_share(made[:1]) == {}
    both = prepare({"one": settings(), "same": settings(), "deep": settings(rounds=DEEP)})
    assert to_share(both) == {"one": list(both[0].untimed)}


def test_what_is_timed_is_left_for_later(real_workspace: Path) -> None:
    text = (REPOSITORY / "configs/pipeline.yaml").read_text()
    Path("configs/pipeline.yaml").write_text(text)
    (made,) = prepare({"demo": load_settings()})
    assert set(stage_order()) - set(made.untimed) == {"latency", "report"}


@pytest.mark.slow
def test_a_recipe_checks_out_what_the_last_run_made(workspace: Workspace) -> None:
    depend("toy.py")
    assert workspace.do("-m", "dvc", "repro", "-q").returncode == 0
    assert "r1" in workspace.executed()
    (made,) = prepare({"deep": settings(rounds=DEEP)})
    command = [sys.executable, "-m", "dvc", "repro", "-q", *made.untimed]
    subprocess.run(command, check=True, cwd=made.folder, env=workspace.environment)
    assert (made.folder / "executed.txt").read_text().split() == ["r2", "select", "report"]


def test_what_a_killed_sweep_left_behind_is_ended_and_no_other_process(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    sleepers = {}
    for folder, place in ((ours, ours), (other, tmp_path)):
        (folder / ".pruneflow").mkdir(parents=True)
        sleepers[folder] = subprocess.Popen(["sleep", "60"], cwd=place, start_new_session=True)
        (folder / ".pruneflow/session").write_text(str(sleepers[folder].pid))
    threading.Thread(target=sleepers[ours].wait).start()  # its parent, were it not us, is init
    clear_recipes([ours, other, tmp_path / "none"])
    assert sleepers[ours].poll() is not None
    assert sleepers[other].poll() is None
    sleepers[other].kill()
    sleepers[other].wait()
