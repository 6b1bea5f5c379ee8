"""Guards of two pins: Prefect's server, and its scheduler, which fails without a word."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.servers import answers, free_port, serving

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server of our own; yields the environment in which `prefect` talks to it."""
    port, home = free_port(), tmp_path_factory.mktemp("prefect")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_UI_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PYTHONPATH": str(REPOSITORY),
    }
    prefect = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with serving(
        [*prefect, "--port", str(port)],
        lambda: answers(f"http://127.0.0.1:{port}/api/health"),
        home / "server.log",
        env=environment,
    ):
        yield environment


def in_prefect(environment: dict[str, str], code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_flow_runs_through_the_server(server: dict[str, str]) -> None:
    code = """
from prefect import flow, task
double = task(lambda x: 2 * x, name="double")
run = flow(lambda: double(21), name="guard")
state = run(return_state=True)
print(state.result(), state.name)
"""
    assert in_prefect(server, code).split() == ["42", "Completed"]


def test_a_cron_deployment_yields_scheduled_runs(server: dict[str, str]) -> None:
    code = """
import time
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule

with get_client(sync_client=True) as client:
    flow = client.create_flow_from_name("guard-cron")
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)
    client.create_deployment(flow, "nightly", schedules=[schedule])
    deadline = time.monotonic() + 60
    runs = []
    while not runs and time.monotonic() < deadline:
        time.sleep(1)
        runs = [run for run in client.read_flow_runs() if run.flow_id == flow]
    print(*{run.state_name for run in runs})
"""
    assert in_prefect(server, code).split() == ["Scheduled"]


def test_the_deployments_of_prefect_yaml_are_accepted(
    server: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "flows").symlink_to(REPOSITORY / "flows")
    text = (REPOSITORY / "prefect.yaml").read_text()
    (tmp_path / "prefect.yaml").write_text(text)
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    for arguments in (
        ["work-pool", "create", "pruneflow", "--type", "process"],
        ["deploy", "--all"],
    ):
        done = subprocess.run(
            [*prefect, *arguments], cwd=tmp_path, env=server, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    code = """
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    for each in client.read_deployments():
        active = any(schedule.active for schedule in each.schedules)
        print(each.name, each.entrypoint, active)
"""
    lines = in_prefect(server, code).splitlines()
    for deployment in yaml.safe_load(text)["deployments"]:
        assert f"{deployment['name']} {deployment['entrypoint']} False" in lines
