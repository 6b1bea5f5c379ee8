"""What `pruneflow gc` removes of the workspace and of DVC's cache; what is needed stays."""

import json
import os
import pty
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pruneflow.artifacts import write_json
from pruneflow.errors import InputError, WorkspaceBusyError
from pruneflow.models.round_record import RoundRecord, write_round_record
from pruneflow.paths import CALIBRATION_SET, CHECKPOINTS, RECOVERY
from pruneflow.settings.pipeline import load_settings
from pruneflow.workspace import run_lock
from tasks.gc import removable, survey
from tasks.gc.removable import Removable
from tasks.sweep.workspaces import prepare
from tests.pipeline.commands import commit, git
from tests.pipeline.garbage import CACHE, cached, collect, found, named_by, names
from tests.pipeline.toy import SETTINGS as TOY
from tests.pipeline.toy import Workspace

LONGER = {**TOY["rounds"], "r3": {"parent": "r2", "ratio": 0.3}}


def files() -> dict[str, bytes]:
    """Every file of the workspace but those that a command only looks through."""
    seen = (Path("data"), CACHE.parents[1], Path("mlflow/artifacts"), Path(".pruneflow/recovery"))
    return {
        str(path): path.read_bytes()
        for place in seen
        for path in place.rglob("*")
        if path.is_file()
    }


def repro(workspace: Workspace) -> list[str]:
    done = workspace.do("-m", "dvc", "repro")
    assert done.returncode == 0, done.stderr
    return workspace.executed()


@pytest.fixture(scope="session")
def replanned_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that replans keeps a copy for the others."""
    return tmp_path_factory.mktemp("replanned") / "workspace"


@pytest.fixture
def replanned(workspace: Workspace, replanned_once: Path) -> Workspace:
    """A workspace whose plan had three rounds and now has two."""
    if replanned_once.exists():
        shutil.copytree(replanned_once, workspace.folder, dirs_exist_ok=True)
        return workspace
    workspace.set(rounds=LONGER, final_round="r3")
    assert "r3" in repro(workspace)
    workspace.set()
    assert repro(workspace) == ["select", "report"]
    shutil.copytree(workspace.folder, replanned_once)
    return workspace


@pytest.mark.slow
def test_what_a_recipe_of_a_sweep_names_stays(replanned: Workspace) -> None:
    named = named_by(Path("dvc.lock").read_text())  # what the longer plan made, too
    replanned.set(rounds=LONGER, final_round="r3")
    (recipe,) = prepare({"as_it_was": load_settings()})
    replanned.set()
    collect()
    assert cached() >= named > named_by(Path("dvc.lock").read_text(), without="round@r3")
    shutil.rmtree(recipe.folder)
    collect()
    assert cached() == named_by(Path("dvc.lock").read_text(), without="round@r3")


@pytest.mark.slow
def test_what_a_longer_plan_left_goes_and_dvc_has_nothing_to_do(replanned: Workspace) -> None:
    before = files()
    shown = replanned.pruneflow("gc")
    assert shown.returncode == 0, shown.stderr
    assert "data/checkpoints/r3" in shown.stdout and "nothing was removed" in shown.stdout
    assert files() == before

    done = replanned.pruneflow("gc", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["removed"] and not facts["notes"]
    of_kind: dict[str, set[str]] = {}
    for thing in facts["found"]:
        of_kind.setdefault(thing["kind"], set()).add(thing["name"])
    after = files()
    gone = before.keys() - after.keys()
    assert {key: before[key] for key in after} == after
    assert facts["bytes"] == sum(len(before[key]) for key in gone) > 0
    assert of_kind.pop("round") == {"data/checkpoints/r3"}
    assert not Path("data/checkpoints/r3").exists()
    assert {Path(name) for name in of_kind.pop("cache entry")} == {
        Path(key).absolute() for key in gone if CACHE in Path(key).parents
    }
    assert of_kind == {}
    # dvc.lock still names the stage that dvc.yaml no longer has; nothing can ask for it.
    assert cached() == named_by(Path("dvc.lock").read_text(), without="round@r3")
    assert repro(replanned) == []
    assert replanned.do("-m", "dvc", "status").stdout == "environment:\n\talways changed\n"
    assert found() == []

    shutil.rmtree("data")  # and what stayed is whole
    assert replanned.do("-m", "dvc", "checkout").returncode == 0
    assert repro(replanned) == []
    replanned.set(rounds=LONGER, final_round="r3")
    assert repro(replanned) == ["r3", "select", "report"]


@pytest.mark.slow
def test_what_a_commit_of_any_branch_names_stays_and_comes_back(workspace: Workspace) -> None:
    def plan(ratio: float) -> str:
        workspace.set(rounds={**TOY["rounds"], "r2": {"parent": "r1", "ratio": ratio}})
        repro(workspace)
        return Path("dvc.lock").read_text()

    first = plan(0.2)
    git("checkout", "-q", "-b", "first")
    commit("first")
    git("checkout", "-q", "-b", "second")
    never_committed = named_by(plan(0.25))
    now = plan(0.3)
    commit("second")
    going = {Path(name).parent.name + Path(name).name for name in names("cache entry", found())}
    kept = named_by(first) | named_by(now)
    assert going == never_committed - kept and going
    collect()
    assert cached() == kept
    assert repro(workspace) == []
    git("checkout", "-q", "-f", "first")
    assert workspace.do("-m", "dvc", "checkout", "--force").returncode == 0
    assert json.loads(Path("data/checkpoints/r2/round.json").read_text())["target"]["ratio"] == 0.2
    assert repro(workspace) == []


@pytest.mark.slow
@pytest.mark.parametrize("why", ["no lock", "shared", "no list of files", "a broken commit"])
def test_a_cache_whose_use_cannot_be_told_is_left_alone(
    replanned: Workspace, tmp_path: Path, why: str
) -> None:
    if why == "no lock":
        Path("dvc.lock").unlink()
    elif why == "shared":
        shutil.move(".dvc/cache", tmp_path / "shared")
        replanned.do("-m", "dvc", "cache", "dir", str(tmp_path / "shared"))
    elif why == "no list of files":
        lock = yaml.safe_load(Path("dvc.lock").read_text())
        oid = lock["stages"]["round@r1"]["outs"][0]["md5"]
        (CACHE / oid[:2] / oid[2:]).unlink()
    else:
        text = Path("dvc.yaml").read_text()
        Path("dvc.yaml").write_text("stages: [")
        git("add", "dvc.yaml", "dvc.lock")
        git("commit", "-q", "-m", "broken")
        Path("dvc.yaml").write_text(text)
    with survey.survey(load_settings()) as seen:
        assert [thing.kind for thing in seen.found] == ["round"]
        (note,) = seen.notes
    words = {
        "no lock": "no dvc.lock",
        "shared": "dvc gc --projects",
        "no list of files": "dvc commit round@r1",
        "a broken commit": "cannot be determined",
    }
    assert words[why] in note and note.endswith("nothing is removed from it")


@pytest.mark.slow
def test_a_person_on_a_terminal_is_asked(replanned: Workspace) -> None:
    before = files()
    for answer, said in (("n", "nothing was removed"), ("y", "removed")):
        ours, theirs = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        with replanned.start("-m", "flows.cli", "gc", stdin=theirs) as process:
            out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        _, asked, last = out.partition("Remove all this? [y/N]: ")
        assert asked and last.startswith(said)
        assert (files() == before) == (answer == "n")
        os.close(ours)
        os.close(theirs)
    assert found() == []


@pytest.mark.slow
def test_however_often_it_is_killed_what_is_needed_stays_and_the_rest_goes(
    replanned: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_after_one_file(path: Path) -> None:
        if path.is_dir():
            inside = [each for each in path.rglob("*") if each.is_file()]
            inside[0].unlink() if inside else shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        else:
            return
        raise KeyboardInterrupt

    needed = named_by(Path("dvc.lock").read_text(), without="round@r3")
    rounds = {key: content for key, content in files().items() if "/r3/" not in key}
    monkeypatch.setattr(removable, "remove_path", kill_after_one_file)
    kills = 0
    while found():
        with pytest.raises(KeyboardInterrupt):
            collect()
        kills += 1
        assert needed <= cached()
        now = files()
        assert all(now[key] == rounds[key] for key in rounds if key.startswith("data/"))
    assert kills > 5
    assert cached() == needed and not list(CHECKPOINTS.glob("*r3*"))
    assert repro(replanned) == []


@pytest.mark.slow
def test_beside_a_run_nothing_is_looked_at_or_removed(replanned: Workspace) -> None:
    before = files()
    with run_lock():
        done = replanned.pruneflow("gc", "--yes")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "another run is using this workspace" in done.stderr
        with pytest.raises(WorkspaceBusyError):
            found()
    with Repo() as repo, repo.lock, pytest.raises(InputError, match="another DVC command"):
        found()
    assert files() == before
    with survey.survey(load_settings()), pytest.raises(WorkspaceBusyError), run_lock():
        pass


def test_leftovers_of_killed_processes_go_and_an_old_state_without_a_new_one_stays(
    workspace: Workspace,
) -> None:
    going = [
        "data/.model.new",
        "data/.model.old",
        "data/checkpoints/.r1.new",
        "data/checkpoints/.r9.old",
        "data/reports/.summary.json.new",
        "data/reports/.decision.json.new",
        ".pruneflow/.flow_run.json.new",
        ".pruneflow/recovery.done",
    ]
    staying = ["data/model", "data/checkpoints/.r2.old", "data/.mine.new"]
    for place in going + staying:
        if place.endswith("json.new"):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            Path(place).write_text("half")
        else:
            Path(place).mkdir(parents=True)
            (Path(place) / "file").write_text("half")
    assert sorted(names("leftover", collect())) == sorted(going)
    assert not any(Path(place).exists() for place in going)
    assert all(Path(place).is_dir() for place in staying)
    assert found() == []


@pytest.fixture
def recoveries(workspace: Workspace) -> Callable[..., str]:
    """Make a checkpoint as a recovery of these settings would name it; returns its place."""

    def make(source: str = "digest of r2", **recovery: Any) -> str:
        from pruneflow.recovery_stage import recovery_checkpoint

        workspace.set(recovery=recovery)
        facts = {"status": "done", "delivered_digest": source, "digest": source}
        dense = {"digest": "dense", "block_weights": 1, "neurons": 1}
        record = RoundRecord(round="r2", delivered="r2", dense=dense, **facts)
        write_round_record(CHECKPOINTS / "r2", record)
        write_json(CALIBRATION_SET / "manifest.json", {"digest": "digest of the set"})
        place = recovery_checkpoint(load_settings())
        assert place is not None
        write_json(place / "manifest.json", {})
        return place.as_posix()

    return make


def test_a_recovery_that_the_present_settings_go_on_with_stays_and_others_go(
    recoveries: Callable[..., str], workspace: Workspace
) -> None:
    of_another_model = recoveries("another digest", token_budget=100)
    of_another_setting = recoveries(token_budget=200)
    present = recoveries(token_budget=100)
    assert recoveries(token_budget=100, checkpoint_every=7) == present
    assert len({of_another_model, of_another_setting, present}) == 3
    assert set(names("leftover", collect())) == {of_another_model, of_another_setting}
    assert Path(present).is_dir()
    Path("data/checkpoints/r2/round.json").unlink()  # a round to come: nobody knows yet
    assert found() == []
    workspace.set()  # no recovery is asked for
    assert names("leftover", collect()) == [present]
    assert list(RECOVERY.iterdir()) == []


def test_a_workspace_that_never_ran_has_nothing_to_remove_and_gets_no_store(
    workspace: Workspace,
) -> None:
    assert found() == []
    assert not Path("mlflow/mlflow.db").exists()


def test_what_cannot_be_removed_is_one_line(workspace: Workspace) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(InputError, match=r"data/x cannot be removed \(Permission denied\)"):
        survey.remove([Removable("round", "data/x", 1, refuse)])
