"""The schedules of prefect.yaml: checked before they are deployed, and left switched as they are.

`prefect deploy` makes a deployment's schedules anew, switched as prefect.yaml says. Who switched
one on or off meant it to stay so.
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

# By the name of a deployment and what each of its schedules says: whether it is on.
Switches = dict[str, dict[str, bool]]


def check_crons(path: Path = PREFECT_FILE) -> int:
    """Make sure that every cron of prefect.yaml can be understood; returns how many there are.

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
                f"{path}, deployment {deployment}: the schedule {given} cannot be understood: "
                'write a cron of five fields, e.g. "0 3 * * 1", and a time zone, e.g. UTC'
            ) from None
        found += 1
    return found


def switches() -> Switches:
    """Ask the Prefect server which schedules of which deployments are on."""
    return {
        deployment.name: {repr(each.schedule): bool(each.active) for each in deployment.schedules}
        for deployment in _deployments()
    }


def switch_as_before(before: Switches) -> None:
    """Switch every schedule that was there before as it was then.

    The only one of a deployment is the one it had, even if its hour was changed.
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
    """Return every schedule with the name of its deployment; what is no mapping is Prefect's."""
    deployments = values.get("deployments") if isinstance(values, dict) else None
    return [
        (str(deployment.get("name")), schedule)
        for deployment in deployments or []
        if isinstance(deployment, dict)
        for schedule in [*(deployment.get("schedules") or []), deployment.get("schedule")]
        if isinstance(schedule, dict)
    ]
