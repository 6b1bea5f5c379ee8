"""What a user can get wrong around servers and stores: one clear line, exit code 2, no change."""

import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from pruneflow.settings.pipeline import RegistrySettings
from tasks.tracking.store import connect
from tests.pipeline.test_registry import Registry, empty_store
from tests.pipeline.toy import Workspace

__all__ = ["empty_store"]

pytestmark = pytest.mark.slow

DEAD = "http://127.0.0.1:9/api"


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for word in words:
        assert word in said[0]


def test_a_prefect_server_that_does_not_answer(workspace: Workspace) -> None:
    store = Registry(RegistrySettings(name="toy-pruned"))
    store.register("a")
    workspace.environment["PREFECT_API_URL"] = DEAD
    for command in ("run", "promote"):
        refused(workspace.pruneflow(command), "PREFECT_API_URL", DEAD, "make services")
    assert workspace.executed() == []
    assert store.aliases() == {"candidate": "1"}


def test_a_store_that_is_locked_or_of_a_newer_schema(
    workspace: Workspace, empty_store: Path
) -> None:
    shutil.copy(empty_store, "mlflow/mlflow.db")
    store = Registry(RegistrySettings(name="toy-pruned"))
    store.register("a")
    with closing(sqlite3.connect("mlflow/mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for command in ("promote", "run"):
            refused(workspace.pruneflow(command), "mlflow.db is locked")
        other.execute("ROLLBACK")
    assert store.aliases() == {"candidate": "1"}
    shutil.copy("mlflow/mlflow.db", "newer.db")
    with closing(sqlite3.connect("newer.db")) as newer:
        newer.execute("UPDATE alembic_version SET version_num = 'feedfacecafe'")
        newer.commit()
    workspace.set(registry={"tracking_uri": "sqlite:///newer.db"})
    for command in ("status", "run"):  # not after hours of pruning
        refused(workspace.pruneflow(command), "newer.db cannot be used", "schema")
    assert workspace.executed() == []


def test_names_versions_and_aliases_that_cannot_be(workspace: Workspace) -> None:
    settings = Path("configs/pipeline.yaml").read_text()
    for name in ("a/b", "a:b", "..", "it's"):
        Path("configs/pipeline.yaml").write_text(settings.replace("toy-pruned", f'"{name}"'))
        refused(workspace.pruneflow("status"), "configs/pipeline.yaml: registry.name")
    Path("configs/pipeline.yaml").write_text(settings)
    client = connect(RegistrySettings(name="toy-pruned"))
    refused(workspace.pruneflow("promote"), "has no candidate")
    refused(workspace.pruneflow("promote", "7"), "has no version 7")
    refused(workspace.pruneflow("restore", "latest"), "has no version latest")
    refused(workspace.pruneflow("rollback"), "has no previous version")
    refused(workspace.pruneflow("serve"), "has no version in production")
    assert not client.search_registered_models() and not workspace.executed()


def test_a_promotion_without_approval(workspace: Workspace) -> None:
    store = Registry(RegistrySettings(name="toy-pruned"))
    store.register("a")
    workspace.set(registry={"promotion": "manual"})
    for reason in ([], ["--because", "it is small"]):  # a reason is nobody's name
        refused(workspace.pruneflow("promote", *reason), "needs approval", "--approved-by NAME")
    assert store.aliases() == {"candidate": "1"}
    done = workspace.pruneflow("promote", "--approved-by", "ada")
    assert done.returncode == 0, done.stderr
