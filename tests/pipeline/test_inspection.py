"""What the commands that only look say of a real registry."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.doctor import checks
from tasks.doctor.checks import OK, PROBLEM
from tasks.registry import promotion
from tests.pipeline.registry import Registry
from tests.pipeline.toy import Workspace
from tests.unit.report_example import evaluation


def look(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[checks.CheckResult]:
    monkeypatch.setattr(checks, "CHECKS", {name: checks.CHECKS[name] for name in names})
    return list(checks.diagnose())


def test_the_doctor_makes_no_store(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = look(monkeypatch, "mlflow")
    assert finding.status == OK and "made by the first run" in finding.message
    assert not Path("mlflow/mlflow.db").exists()


def test_the_doctor_tells_the_schema_of_the_store_and_refuses_another(
    workspace: Workspace, store: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect("mlflow/mlflow.db")) as tables:
        ((schema,),) = tables.execute("SELECT version_num FROM alembic_version")
    (finding,) = look(monkeypatch, "mlflow")
    assert finding.status == OK and schema in finding.message

    Path("other").mkdir()
    shutil.copy("mlflow/mlflow.db", "other/mlflow.db")
    with closing(sqlite3.connect("other/mlflow.db")) as tables:
        tables.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        tables.commit()
    workspace.set(registry={"tracking_uri": "sqlite:///other/mlflow.db"})
    (finding,) = look(monkeypatch, "mlflow")
    assert finding.status == PROBLEM and "0123456789ab" in finding.message


def test_the_doctor_reads_the_graph_and_asks_the_prefect_server(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, prefect = look(monkeypatch, "stages", "prefect")
    assert stages.status == prefect.status == OK
    Path("dvc.yaml").write_text("stages: {a: {deps: [b]}}\n")
    (stages,) = look(monkeypatch, "stages")
    assert stages.status == PROBLEM and "dvc.yaml" in stages.message


def compare(*names: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["compare", *names, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_versions_are_compared_by_number_and_alias(workspace: Workspace, store: Registry) -> None:
    workspace.set(registry={"name": store.settings.name})
    for content, ratio in (("a", "0.1"), ("b", "0.2")):
        version = store.register(content)
        found = store.client.get_model_version(store.settings.name, version)
        record = evaluation(version == "2", content, 900, 700, (130, 100))
        with mlflow.start_run(run_id=found.run_id):
            mlflow.log_param("rounds.r1.ratio", ratio)
            mlflow.log_dict(record, "reports/evaluation.json")
        promotion.promote(store.settings, version)
    found = compare("previous", "production")
    assert found == {**compare("1", "2"), "a": found["a"], "b": found["b"]}
    assert (found["a"]["title"], found["b"]["title"]) == ("version 1", "version 2")
    assert found["digests"]["model"] == {"a": "a", "b": "b"}
    assert found["settings"] == {"rounds.r1.ratio": {"a": "0.1", "b": "0.2"}}
    assert found["perplexity"]["domains"]["law"]["ratio"]["value"] > 1
    assert any("speed" in note for note in found["notes"])


def test_an_alias_that_stands_for_nothing_is_one_line(
    workspace: Workspace, store: Registry
) -> None:
    workspace.set(registry={"name": store.settings.name})
    store.register("a")
    done = CliRunner().invoke(app, ["compare", "candidate", "production"])
    assert "has no production version" in str(done.exception)
