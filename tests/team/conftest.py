"""The servers that a team shares, on loopback, started as mlflow/README.md says."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipeline.toy import REPOSITORY, Workspace
from tests.servers import answers, free_port, serving
from tests.team.shared import ADMIN, BUCKET, MLFLOW_USER, PASSWORD, PORTS, S3_KEYS, Team


@pytest.fixture(scope="session")
def places() -> Team:
    """Where the servers will be."""
    return Team({name: free_port() for name in PORTS})


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the servers run in, with what they need of the repository."""
    folder = tmp_path_factory.mktemp("servers")
    (folder / "mlflow").mkdir()
    return folder


@pytest.fixture(scope="session")
def environment(home: Path) -> dict[str, str]:
    """A server's environment: this Python's programs, and nothing of whoever runs the tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def postgres(places: Team, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """PostgreSQL; yields what its clients have in their environment."""
    from tests.team.postgres import cluster

    with cluster(places, environment):
        yield {"PGPASSWORD": PASSWORD}


@pytest.fixture(scope="session")
def bucket(places: Team, home: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """An S3 server with a bucket; yields what MLflow's server has in its environment."""
    import boto3

    url = places.url("s3")
    command = ["moto_server", "-H", "127.0.0.1", "-p", str(places.ports["s3"])]
    with serving(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        lambda: answers(url),
        home / "s3.log",
        env=environment,
    ):
        session = boto3.Session(
            S3_KEYS["AWS_ACCESS_KEY_ID"],
            S3_KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=S3_KEYS["AWS_DEFAULT_REGION"],
        )
        session.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
        yield {**S3_KEYS, "MLFLOW_S3_ENDPOINT_URL": url}


@pytest.fixture(scope="session")
def prefect(
    places: Team, home: Path, environment: dict[str, str], postgres: dict[str, str]
) -> Iterator[None]:
    """Prefect's server on PostgreSQL."""
    with serving(
        ["bash", "-ec", places.documented("bash", "prefect server start")],
        lambda: answers(f"{places.url('prefect')}/api/health"),
        home / "prefect.log",
        cwd=home,
        env={
            **environment,
            **postgres,
            "PREFECT_SERVER_API_AUTH_STRING": f"pruneflow:{PASSWORD}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "false",
        },
    ):
        yield


@pytest.fixture(scope="session")
def mlflow(
    places: Team,
    home: Path,
    environment: dict[str, str],
    postgres: dict[str, str],
    bucket: dict[str, str],
) -> Iterator[None]:
    """MLflow's server with users, on PostgreSQL and S3."""
    users = (REPOSITORY / "mlflow/basic_auth.ini").read_text()
    (home / "mlflow/basic_auth.ini").write_text(places.here(users))
    with serving(
        ["bash", "-ec", places.documented("bash", "mlflow server")],
        lambda: answers(f"{places.url('mlflow')}/health"),
        home / "mlflow.log",
        cwd=home,
        env={
            **environment,
            **postgres,
            **bucket,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD,
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
    ):
        yield


@pytest.fixture(scope="session")
def team(places: Team, mlflow: None, prefect: None) -> Team:
    """All servers, with two users of MLflow who were granted nothing yet: ada and ben."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in places.member(ADMIN).items():
            patch.setenv(key, value)
        from mlflow.server import get_app_client

        users = get_app_client("basic-auth", tracking_uri=places.url("mlflow"))
        for name in ("ada", "ben"):
            users.create_user(name, PASSWORD)
    return places


@pytest.fixture
def ada(team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Workspace]:
    """This process is ada's; makes workspaces of hers, and goes into the newest one."""
    for key, value in zip(MLFLOW_USER, ("ada", PASSWORD), strict=True):
        monkeypatch.setenv(key, value)

    def make(model: str) -> Workspace:
        made = team.workspace(tmp_path / "ada", "ada", model)
        monkeypatch.chdir(made.folder)
        return made

    return make
