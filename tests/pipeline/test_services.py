"""`make services`: a real Prefect server and worker and MLflow's server, up and down together."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.pipeline.toy import REPOSITORY, Workspace
from tests.servers import Webhook, answers, free_port, wait_until

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.settings import get_current_settings
run = run_deployment(sys.argv[1], timeout=float(sys.argv[2]))
with get_client(sync_client=True) as client:
    run = client.read_flow_run(run.id)
    print(json.dumps({"id": str(run.id), "state": run.state.name, "message": run.state.message}))
"""
STATE = """
import sys
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    print(client.read_flow_run(sys.argv[1]).state.name)
"""
FACTS = """
import json
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    deployments = client.read_deployments()
    print(json.dumps({
        "artifacts": [artifact.key for artifact in client.read_artifacts()],
        "deployments": {each.name: each.entrypoint for each in deployments},
        "active": [schedule.active for each in deployments for schedule in each.schedules],
        "states": [run.state_name for run in client.read_flow_runs()],
    }))
"""
SWITCH_ON = """
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    deployment = client.read_deployment_by_name("pipeline/weekly")
    (schedule,) = deployment.schedules
    client.update_deployment_schedule(deployment.id, schedule.id, active=True)
"""


@pytest.fixture
def services(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """The services of a toy workspace; its environment talks to them from here on."""
    for name in ("Procfile", "prefect.yaml"):
        (workspace.folder / name).write_text((REPOSITORY / name).read_text())
    for name in ("flows", "tasks", "pruneflow"):
        (workspace.folder / name).symlink_to(REPOSITORY / name)
    ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
    workspace.environment.update(
        {
            **ports,
            "PREFECT_API_URL": f"http://127.0.0.1:{ports['PREFECT_PORT']}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PRUNEFLOW_WORKSPACE": str(workspace.folder),
        }
    )
    process = start(workspace)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        finally:
            kill_all(workspace)


def start(workspace: Workspace) -> "subprocess.Popen[str]":
    said = workspace.folder / "services.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "honcho", "start"],
            env={**workspace.environment, "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    assert wait_until(lambda: "Worker 'ProcessWorker" in said.read_text()), said.read_text()
    return process


def kill_all(workspace: Workspace) -> None:
    """Kill the services, and all that they started, as a power cut does."""
    port = workspace.environment["PREFECT_PORT"]
    for child in psutil.process_iter(["environ"]):
        if (child.info["environ"] or {}).get("PREFECT_PORT") == port:
            child.kill()


def let_leases_end(workspace: Workspace) -> None:
    """Let the places that runs hold end now, and not five minutes after they died."""
    leases = Path(workspace.environment["PREFECT_HOME"]) / "concurrency_leases"
    past = "2026-01-01T00:00:00+00:00"
    index = leases / "expirations.json"
    known = json.loads(index.read_text())
    assert known
    index.write_text(json.dumps(dict.fromkeys(known, past)))
    for name in known:
        lease = json.loads((leases / f"{name}.json").read_text())
        (leases / f"{name}.json").write_text(json.dumps({**lease, "expiration": past}))


def flow_run(workspace: Workspace, deployment: str, wait: float = 300.0) -> dict[str, str]:
    done = workspace.do("-c", RUN, deployment, str(wait))
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_worker_runs_the_pipeline_and_survives_kills_and_all_stop_together(
    workspace: Workspace, services: "subprocess.Popen[str]", webhook: Webhook
) -> None:
    mlflow = f"http://127.0.0.1:{workspace.environment['MLFLOW_PORT']}"
    assert wait_until(lambda: answers(f"{mlflow}/health"))
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    before = facts(workspace)
    assert before["deployments"] == {each["name"]: each["entrypoint"] for each in deployments}
    assert before["active"] == [False]
    assert workspace.do("-c", SWITCH_ON).returncode == 0

    first = flow_run(workspace, "pipeline/weekly")
    assert first["state"] == "Accepted", first
    assert workspace.executed() == ["calibration", "r1", "r2", "select", "report"]
    assert {"progress", "report", "result"} <= set(facts(workspace)["artifacts"])
    # Prefect's scheduler fails in its log only where a pin is not kept.
    assert wait_until(lambda: "Scheduled" in facts(workspace)["states"])

    # A stage is killed with its flow, as by the machine; the worker says that the run crashed.
    workspace.set(
        rounds={"r1": {"parent": "dense", "ratio": 0.15}, "r2": {"parent": "r1", "ratio": 0.3}},
        notify={"webhook": webhook.url},
    )
    killed, stage = stuck_in_r2(workspace)
    flow = next(
        process
        for process in psutil.Process(stage).parents()
        if "prefect" in " ".join(process.cmdline()) and "dvc" not in process.cmdline()
    )
    flow.kill()
    kill_stage()
    assert wait_until(lambda: state(workspace, killed) == "Crashed", 120)
    assert wait_until(lambda: webhook.heard, 60)
    (told,) = webhook.heard
    assert told["state"] == "Crashed" and told["production"] == "1"

    # Power is cut while the next one runs; the deployment lets one run at a time, and the dead one
    # had its place.
    cut_off, _ = stuck_in_r2(workspace)
    kill_all(workspace)
    services.wait()
    Path("slow-r2").unlink()
    let_leases_end(workspace)
    workspace.executed()
    restarted = start(workspace)
    try:
        assert facts(workspace)["active"] == [True]
        again = flow_run(workspace, "pipeline/weekly", wait=0)
        assert wait_until(lambda: state(workspace, again["id"]) == "Accepted", 400)
        assert workspace.executed() == ["r2", "select", "report"]
        assert state(workspace, cut_off) == "Crashed"
        assert [told["state"] for told in webhook.heard] == ["Crashed"] * 2

        rolled_back = flow_run(workspace, "rollback/rollback")
        assert rolled_back["state"] == "Completed", rolled_back
        assert "version 1 of" in rolled_back["message"]
        command = "deployment run promotion/promotion -p version=2 -p approved_by=ada --watch"
        done = workspace.do("-m", "prefect", *command.split())
        assert done.returncode == 0, done.stdout + done.stderr
        status = json.loads(workspace.pruneflow("status", "--json").stdout)
        assert status["production"]["version"] == "2"
    finally:
        restarted.send_signal(signal.SIGINT)
        restarted.wait(timeout=60)
    for port in (workspace.environment["PREFECT_PORT"], workspace.environment["MLFLOW_PORT"]):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def stuck_in_r2(workspace: Workspace) -> tuple[str, int]:
    """Start a run that stays in round r2; returns its id and the process of the stage."""
    Path("pids.json").unlink(missing_ok=True)
    Path("slow-r2").touch()
    run = flow_run(workspace, "pipeline/weekly", wait=0)
    assert wait_until(lambda: Path("pids.json").exists())
    return run["id"], json.loads(Path("pids.json").read_text())[0]


def kill_stage() -> None:
    for pid in json.loads(Path("pids.json").read_text()):
        os.kill(pid, signal.SIGKILL)


def facts(workspace: Workspace) -> dict[str, Any]:
    """What the server knows."""
    done = workspace.do("-c", FACTS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def state(workspace: Workspace, run: str) -> str:
    return workspace.do("-c", STATE, run).stdout.strip()
