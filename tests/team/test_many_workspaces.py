"""Promotions at once from several workspaces, which share nothing but the servers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.registry import promotion
from tests.pipeline.test_registry import Registry
from tests.pipeline.toy import Workspace
from tests.team.shared import Team

pytestmark = pytest.mark.team

MODEL = "many"
PROMOTE = """
import sys
from contextlib import nullcontext
from pruneflow.settings.pipeline import load_settings
from tasks.registry import promotion
promotion.smoke_tests = lambda store: nullcontext(lambda uri: ["a text"])
promotion.promote(load_settings().registry, sys.argv[1], promotion.Approval(sys.argv[2]))
"""


def test_ten_promotions_from_five_workspaces_end_with_one_production_and_a_true_previous(
    team: Team, ada: Callable[[str], Workspace], tmp_path: Path
) -> None:
    workspaces = [ada(MODEL)]
    workspaces += [team.workspace(tmp_path / f"ada-{each}", "ada", MODEL) for each in range(4)]
    settings = team.registry(MODEL)
    store = Registry(settings)
    numbers = [store.register(f"model {number}") for number in range(10)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE, number, workspace.folder.name],
            cwd=workspace.folder,
            env=workspace.environment,
        )
        for number, workspace in zip(numbers, workspaces * 2, strict=True)
    ]
    assert [process.wait(timeout=600) for process in running] == [0] * 10
    told = promotion.history(settings)
    assert sorted(each["version"] for each in told) == sorted(numbers)
    assert [each["former"] for each in told] == [None, *(each["version"] for each in told[:-1])]
    assert store.aliases() == {
        "candidate": numbers[-1],
        "production": told[-1]["version"],
        "previous": told[-2]["version"],
    }
    assert len({each["by"] for each in told}) == 5
