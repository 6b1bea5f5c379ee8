"""What a user can get wrong around servers and stores: one clear line, exit code 2, no change."""

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pruneflow.settings.pipeline import RegistrySettings
from tasks.tracking.store import connect
from tests.pipeline.commands import pruneflow_here
from tests.pipeline.registry import Registry
from tests.pipeline.toy import Workspace

pytestmark = pytest.mark.slow

DEAD = "http://127.0.0.1:9/api"


Refused = Callable[..., None]


@pytest.fixture
def refused(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a command in this process and check that it ends in one line with these words."""

    def check(*command: str, words: Sequence[str]) -> None:
        capfd.readouterr()
        assert pruneflow_here(*command) == 2
        said = capfd.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said.err
        assert "Traceback" not in said.err + said.out
        assert all(word in errors[0] for word in words), errors

    return check


def test_a_prefect_server_that_does_not_answer(workspace: Workspace, refused: Refused) -> None:
    store = Registry(RegistrySettings(name="toy-pruned"))
    store.register("a")
    with temporary_settings({PREFECT_API_URL: DEAD}):
        for command in ("run", "promote"):
            refused(command, words=["PREFECT_API_URL", DEAD, "make services"])
    assert workspace.executed() == []
    assert store.aliases() == {"candidate": "1"}


def test_a_store_that_is_locked_or_of_a_newer_schema(
    workspace: Workspace, empty_store: Path, refused: Refused
) -> None:
    shutil.copy(empty_store, "mlflow/mlflow.db")
    store = Registry(RegistrySettings(name="toy-pruned"))
    store.register("a")
    with closing(sqlite3.connect("mlflow/mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for command in ("promote", "run"):
            refused(command, words=["mlflow.db is locked"])
        other.execute("ROLLBACK")
    assert store.aliases() == {"candidate": "1"}
    shutil.copy("mlflow/mlflow.db", "newer.db")
    with closing(sqlite3.connect("newer.db")) as newer:
        newer.execute("UPDATE alembic_version SET version_num = 'feedfacecafe'")
        newer.commit()
    workspace.set(registry={"tracking_uri": "sqlite:///newer.db"})
    for command in ("promote", "run"):  # not after hours of pruning
        refused(command, words=["newer.db cannot be used", "schema"])
    assert workspace.executed() == []


def test_names_versions_and_aliases_that_cannot_be(workspace: Workspace, refused: Refused) -> None:
    settings = Path("configs/pipeline.yaml").read_text()
    for name in ("a/b", "a:b", "..", "it's"):
        Path("configs/pipeline.yaml").write_text(settings.replace("toy-pruned", f'"{name}"'))
        refused("status", words=["configs/pipeline.yaml: registry.name"])
    Path("configs/pipeline.yaml").write_text(settings)
    client = connect(RegistrySettings(name="toy-pruned"))
    refused("promote", words=["has no candidate"])
    refused("promote", "7", words=["has no version 7"])
    refused("restore", "latest", words=["has no version latest"])
    refused("rollback", words=["has no previous version"])
    refused("serve", words=["has no version in production"])
    assert not client.search_registered_models() and not workspace.executed()
