"""`dvc exp run`, in the workspace and queued: what changed runs, and nothing else."""

from pathlib import Path

import pytest

from pruneflow.settings.pipeline import load_settings
from tests.pipeline.commands import commit, executed, git
from tests.pipeline.toy import Workspace

pytestmark = pytest.mark.slow

RATIO = "configs/pipeline.yaml:rounds.r2.ratio"
MODEL = Path("data/checkpoints/r2/config.json")


@pytest.fixture
def finished(workspace: Workspace) -> Workspace:
    """A workspace whose stages have run, with a commit; dvc.lock is not in it."""
    git("config", "user.name", "ada")
    git("config", "user.email", "ada@example.org")
    commit("A toy")
    assert workspace.do("-m", "dvc", "repro", "-q").returncode == 0
    assert "r1" in workspace.executed()
    return workspace


def dvc(workspace: Workspace, *arguments: str) -> str:
    done = workspace.do("-m", "dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_experiment_runs_the_changed_round_and_later_stages(finished: Workspace) -> None:
    dvc(finished, "exp", "run", "-S", f"{RATIO}=0.25")
    assert finished.executed() == ["r2", "select", "report"]
    assert load_settings().rounds["r2"].ratio == 0.25


def test_a_queued_experiment_runs_in_its_own_folder_and_can_be_applied(
    finished: Workspace,
) -> None:
    before = MODEL.read_text()
    dvc(finished, "exp", "run", "--queue", "-n", "deeper", "-S", f"{RATIO}=0.3")
    output = dvc(finished, "exp", "run", "--run-all")
    assert executed(output) == ["round@r2", "select", "report"], output
    assert MODEL.read_text() == before and load_settings().rounds["r2"].ratio == 0.2
    assert finished.executed() == []
    dvc(finished, "exp", "apply", "deeper")
    assert MODEL.read_text() != before and load_settings().rounds["r2"].ratio == 0.3
    dvc(finished, "repro")
    assert finished.executed() == []
