"""The pipeline on PostgreSQL and S3, and its data in somebody else's clone."""

import json
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.registry import versions
from tasks.tracking.store import connect
from tests.pipeline.commands import commit, contents, git
from tests.pipeline.registry import Registry
from tests.pipeline.toy import Workspace
from tests.servers import free_port
from tests.team.shared import BUCKET, PASSWORD, S3_KEYS, Team

pytestmark = pytest.mark.team

MODEL = "shared"
STAGES = ["calibration", "r1", "r2", "select", "report"]


def flow_runs(team: Team) -> list[str]:
    """How the runs that Prefect's server knows ended, the oldest first."""
    request = urllib.request.Request(
        f"{team.url('prefect')}/api/flow_runs/filter",
        json.dumps({"sort": "START_TIME_ASC"}).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": "Basic " + b64encode(f"pruneflow:{PASSWORD}".encode()).decode(),
        },
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return [run["state_name"] for run in json.load(response)]


def test_the_pipeline_runs_on_shared_stores_and_its_data_comes_back_byte_for_byte(
    team: Team, ada: Callable[[str], Workspace], tmp_path: Path
) -> None:
    workspace = ada(MODEL)
    for line in team.documented("bash", "dvc remote").splitlines():
        done = workspace.do("-m", *line.split())
        assert done.returncode == 0, done.stderr
    commit("settings")
    done = workspace.pruneflow("run")
    assert done.returncode == 0, done.stderr
    assert f"accepted    version 1 of {MODEL} is in production" in done.stdout
    assert f"MLflow      {team.url('mlflow')}\n" in done.stdout
    assert "not pushed" not in done.stdout
    assert workspace.executed() == STAGES
    assert flow_runs(team)[-1] == "Accepted"
    settings = team.registry(MODEL)
    found: Any = versions.status(settings)["production"]
    assert found["version"] == "1"
    run = connect(settings).get_run(found["run_id"])
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert versions.read_artifact(found, versions.DECISION_ARTIFACT)["accepted"]
    assert not Path("mlflow/artifacts").exists()

    commit("dvc.lock")
    clone = tmp_path / "clone"
    git("clone", "--quiet", ".", str(clone))
    other = Workspace(clone, tmp_path / "clone-prefect")
    other.environment.update(team.member("ben"))
    done = other.do("-m", "dvc", "pull", "--quiet")
    assert done.returncode == 0, done.stderr
    for name in ("checkpoints/r1", "checkpoints/r2", "model", "calibration/set"):
        assert contents(clone / "data" / name) == contents(Path("data") / name) != {}

    done = workspace.pruneflow("run")
    assert (done.returncode, workspace.executed()) == (0, [])
    assert f"nothing new version 1 of {MODEL} is in production already" in done.stdout
    assert flow_runs(team)[-1] == "NothingNew"


def test_a_model_is_fetched_to_be_checked_and_no_copy_of_it_is_left(
    team: Team, ada: Callable[[str], Workspace], tmp_path: Path
) -> None:
    import boto3

    workspace = ada("fetched")
    settings = team.registry("fetched")
    store = Registry(settings)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    workspace.environment["TMPDIR"] = str(scratch)
    store.register("a")
    done = workspace.pruneflow("promote")
    assert done.returncode == 0, done.stderr
    assert "version 1 of fetched is in production" in done.stdout
    assert list(scratch.rglob("MLmodel")) == []

    store.register("b")
    (found,) = store.stored("2").rglob("config.json")
    place = store.client.get_model_version_download_uri("fetched", "2")
    session = boto3.Session(S3_KEYS["AWS_ACCESS_KEY_ID"], S3_KEYS["AWS_SECRET_ACCESS_KEY"])
    bucket = session.resource("s3", endpoint_url=team.url("s3")).Bucket(BUCKET)
    model = place.removeprefix("mlflow-artifacts:/")
    (stored,) = [
        each for each in bucket.objects.filter(Prefix=f"mlflow/{model}") if found.name in each.key
    ]
    assert stored.get()["Body"].read() == b"b"
    stored.put(Body=b"c")
    done = workspace.pruneflow("promote")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "version 2 of fetched is damaged" in done.stderr
    assert store.aliases() == {"candidate": "2", "production": "1"}


def test_a_server_that_is_not_there_is_one_line_at_once(ada: Callable[[str], Workspace]) -> None:
    workspace = ada("nowhere")
    url = f"http://127.0.0.1:{free_port()}"
    workspace.set(registry={"tracking_uri": url})
    done = workspace.pruneflow("status")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"MLflow's store {url} cannot be used" in done.stderr

    workspace.set()
    workspace.environment["PREFECT_API_URL"] = f"{url}/api"
    done = workspace.pruneflow("run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"no Prefect server answers at PREFECT_API_URL ({url}/api" in done.stderr


def test_a_prefect_server_that_does_not_know_us_is_one_line(
    team: Team, ada: Callable[[str], Workspace]
) -> None:
    workspace = ada("unknown")
    workspace.environment["PREFECT_API_AUTH_STRING"] = "pruneflow:wrong"
    done = workspace.pruneflow("run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "refuses with status 401: check PREFECT_API_AUTH_STRING" in done.stderr
    assert workspace.executed() == []
