"""Crons of prefect.yaml are looked at before anything is deployed."""

from pathlib import Path

import pytest
import yaml

from pruneflow.errors import InputError
from tasks.prefect.schedules import check_crons
from tests.conftest import ROOT


def deployed(path: Path, **schedule: str) -> Path:
    path.write_text(yaml.safe_dump({"deployments": [{"name": "weekly", "schedules": [schedule]}]}))
    return path


def test_the_project_s_own_can_be_understood() -> None:
    assert check_crons(ROOT / "prefect.yaml") == 1


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"cron": "every monday"}, "'every monday' is not valid: write a cron"),
        ({"cron": "0 25 * * 1"}, "'0 25 \\* \\* 1' is not valid"),
        ({"cron": "0 3 * * 1", "timezone": "Mars/Olympus"}, "'Mars/Olympus' is not valid"),
    ],
)
def test_one_that_cannot_is_one_line(schedule: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"prefect.yaml, deployment weekly: the schedule {said}"):
        check_crons(deployed(tmp_path / "prefect.yaml", **schedule))


def test_other_schedules_are_left_to_prefect(tmp_path: Path) -> None:
    assert check_crons(deployed(tmp_path / "prefect.yaml", rrule="FREQ=DAILY")) == 0
    with pytest.raises(InputError, match="missing: restore it from git"):
        check_crons(tmp_path / "none.yaml")
