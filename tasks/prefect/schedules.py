"""The schedules of prefect.yaml: checked before deployment, and kept active or paused.

`prefect deploy` replaces a deployment's schedules and resets each to the `active` of prefect.yaml.
A schedule that a user resumed or paused must stay so.
"""

from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from pruneflow.errors import InputError
from pruneflow.settings.base import read_yaml

PREFECT_FILE = Path("prefect.yaml")

# Whether each schedule is active, by deployment and by the schedule's repr.
Active = dict[str, dict[str, bool]]


def check_crons(path: Path = PREFECT_FILE) -> int:
    """Check that every cron of prefect.yaml is valid; returns how many there are.

    Raises:
        InputError: the file is missing or is not YAML, or a cron or its time zone is wrong.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: restore it from git")
    found = 0
    for deployment, schedule in _schedules(read_yaml(path)):
        cron, zone = schedule.get("cron"), schedule.get("timezone")
        if cron is None:
            continue
        try:
            CronSchedule(cron=cron, timezone=zone)
        except ValidationError as error:
            wrong = error.errors()[0]
            given = repr(zone) if wrong["loc"] == ("timezone",) else repr(cron)
            raise InputError(
                f"{path}, deployment {deployment}: the schedule {given} is not valid: "
                'write a cron of five fields, e.g. "0 3 * * 1", and a time zone, e.g. UTC'
            ) from None
        found += 1
    return found


def active_schedules() -> Active:
    """Return which schedules are active on the Prefect server."""
    return {
        deployment.name: {repr(each.schedule): bool(each.active) for each in deployment.schedules}
        for deployment in _deployments()
    }


def restore_active(before: Active) -> None:
    """Set every schedule active or paused as it was before.

    A deployment's only schedule keeps its state even if its cron was changed.
    """
    with get_client(sync_client=True) as client:
        for deployment in _deployments():
            known = before.get(deployment.name, {})
            for each in deployment.schedules:
                only = [*known.values()] if len(known) == len(deployment.schedules) == 1 else []
                active = known.get(repr(each.schedule), *only or [each.active])
                if active != each.active:
                    client.update_deployment_schedule(deployment.id, each.id, active=active)


def _deployments() -> list[DeploymentResponse]:
    with get_client(sync_client=True) as client:
        return list(client.read_deployments())


def _schedules(values: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return every schedule with the name of its deployment; Prefect reports malformed ones."""
    deployments = values.get("deployments") if isinstance(values, dict) else None
    return [
        (str(deployment.get("name")), schedule)
        for deployment in deployments or []
        if isinstance(deployment, dict)
        for schedule in [*(deployment.get("schedules") or []), deployment.get("schedule")]
        if isinstance(schedule, dict)
    ]
