"""What a run shares: pushed after it was accepted, and pulled in a second clone."""

import json
import shutil
from pathlib import Path

import pytest

from tests.pipeline.commands import commit, contents, git
from tests.pipeline.toy import Workspace

pytestmark = pytest.mark.slow


def test_an_accepted_run_is_pushed_and_a_second_clone_has_nothing_to_do(
    workspace: Workspace, tmp_path: Path
) -> None:
    done = workspace.pruneflow("run", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)  # nothing else may be there
    assert outcome["in_production"] and outcome["not_pushed"] is None
    commit("a run")

    git("clone", "-q", ".", str(tmp_path / "clone"))
    clone = Workspace(tmp_path / "clone", tmp_path / "prefect")
    store = str(workspace.folder / ".dvc/store")
    for command in (["remote", "modify", "--local", "store", "url", store], ["pull"]):
        pulled = clone.do("-m", "dvc", *command)
        assert pulled.returncode == 0, pulled.stderr
    for place in ("data/checkpoints", "data/model"):
        assert contents(clone.folder / place) == contents(workspace.folder / place)
    clone.executed()
    assert clone.do("-m", "dvc", "repro").returncode == 0
    assert clone.executed() == []


def test_a_refused_run_is_not_pushed_and_a_lost_remote_is_said_and_stops_nothing(
    workspace: Workspace,
) -> None:
    workspace.gate(0.9)
    assert workspace.pruneflow("run").returncode == 1
    assert not Path(".dvc/store").exists()
    workspace.gate(0.1)
    shutil.rmtree(".dvc/store", ignore_errors=True)
    Path(".dvc/store").write_text("in the way")
    done = workspace.pruneflow("run")
    assert done.returncode == 0, done.stderr
    assert "version 1 of toy-pruned is in production" in done.stdout
    assert "not pushed" in done.stdout
    status = json.loads(workspace.pruneflow("status", "--json").stdout)
    assert status["production"]["version"] == "1"
