"""Promotions at once from several workspaces, which share nothing but the servers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.registry import promotion
from tests.pipeline.commands import PROMOTE_AT_ONCE
from tests.pipeline.registry import Registry
from tests.pipeline.toy import Workspace
from tests.team.shared import Team

pytestmark = pytest.mark.team

MODEL = "many"


def test_ten_promotions_from_five_workspaces_end_with_one_production_and_a_true_previous(
    team: Team, ada: Callable[[str], Workspace], tmp_path: Path
) -> None:
    workspaces = [ada(MODEL)]
    workspaces += [team.workspace(tmp_path / f"ada-{each}", "ada", MODEL) for each in range(4)]
    settings = team.registry(MODEL)
    store = Registry(settings)
    numbers = [store.register(f"model {number}") for number in range(10)]
    places = (workspace.folder for workspace in workspaces * 2)
    moves = [f"{number}={place}" for number, place in zip(numbers, places, strict=True)]
    done = workspaces[0].do(PROMOTE_AT_ONCE, *moves)
    assert done.returncode == 0, done.stderr
    told = promotion.history(settings)
    assert sorted(each["version"] for each in told) == sorted(numbers)
    assert [each["former"] for each in told] == [None, *(each["version"] for each in told[:-1])]
    assert store.aliases() == {
        "candidate": numbers[-1],
        "production": told[-1]["version"],
        "previous": told[-2]["version"],
    }
    assert len({each["by"] for each in told}) == 5
