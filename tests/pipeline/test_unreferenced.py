"""What `pruneflow gc` removes of MLflow's store: what no alias points at, and nothing else."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from pruneflow.errors import InputError
from tasks.registry import promotion, versions
from tasks.registry.registered_model import rolled_back_in
from tests.pipeline.garbage import collect, found, names
from tests.pipeline.registry import SETTINGS, Registry
from tests.pipeline.toy import Workspace

REGISTRY = {"name": SETTINGS.name, "experiment": SETTINGS.experiment}


@pytest.fixture(autouse=True)
def same_registry(workspace: Workspace) -> None:
    """The settings of the workspace name the registry of `store`."""
    workspace.set(registry=REGISTRY)


def test_versions_without_an_alias_go_and_the_others_work_as_before(store: Registry) -> None:
    store.put_into_production("a", "b", "c")
    store.register("d")
    place = store.stored("1")
    before, told = store.aliases(), promotion.history(SETTINGS)
    assert before == {"candidate": "4", "production": "3", "previous": "2"}
    assert found(keep_versions=1) == []
    (going,) = found()
    assert (going.kind, going.name) == ("version", "pruneflow version 1")
    assert going.size == sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert place.is_dir()
    collect()
    assert not place.exists() and found() == []
    assert store.aliases() == before and promotion.history(SETTINGS) == told
    for number in "234":
        with versions.checkpoint(SETTINGS, number) as directory:
            assert directory.is_dir()
    with pytest.raises(InputError, match="has no version 1"):
        promotion.restore(SETTINGS, "1")
    assert promotion.rollback(SETTINGS) == promotion.Move("2", "3", True)
    assert store.register("a") == "5"  # made again, it is a new version


@pytest.mark.slow
def test_the_commands_about_versions_work_after_it(store: Registry, workspace: Workspace) -> None:
    store.put_into_production("a", "b", "c")
    done = workspace.pruneflow("gc", "--yes")
    assert "pruneflow version 1" in done.stdout and done.stdout.endswith("removed\n"), done.stderr
    assert "`pruneflow restore` cannot bring them back" in done.stdout
    assert "version 2 of pruneflow is in production" in workspace.pruneflow("rollback").stdout
    status = json.loads(workspace.pruneflow("status", "--json").stdout)
    assert (status["production"]["version"], status["previous"]["version"]) == ("2", "3")
    assert [move["version"] for move in status["history"]] == ["1", "2", "3", "2"]
    lost = workspace.pruneflow("restore", "1")
    assert lost.returncode == 2 and "has no version 1" in lost.stderr


def test_an_alias_of_the_users_own_and_a_version_that_was_rolled_back_stay(store: Registry) -> None:
    store.put_into_production("a", "b")
    promotion.rollback(SETTINGS)
    store.put_into_production("c", "d", "e")
    store.client.set_registered_model_alias(SETTINGS.name, "champion", "1")
    assert names("version", found()) == ["pruneflow version 3"]
    assert rolled_back_in(promotion.history(SETTINGS), "2")
    store.client.delete_registered_model_alias(SETTINGS.name, "champion")
    assert names("version", found()) == ["pruneflow version 3", "pruneflow version 1"]


def test_models_no_version_names_go_if_the_pipeline_logged_them(store: Registry) -> None:
    version = store.register("a")
    logged = []
    for tags in ({"decision": "accepted"}, {}):
        with mlflow.start_run(experiment_id=store.experiment, tags=tags):
            model = mlflow.pyfunc.log_model(name="model", python_model="mlflow/served_model.py")
        logged.append(model.model_id)
    ours, of_somebody = logged
    assert names("logged model", found()) == [ours]
    collect()
    assert found() == []
    assert not list(Path("mlflow/artifacts").glob(f"models/{ours}/**/MLmodel"))
    assert mlflow.pyfunc.load_model(f"models:/{of_somebody}")
    with versions.checkpoint(SETTINGS, version) as directory:
        assert directory.is_dir()


def test_files_of_deleted_runs_go_unless_a_version_stands_on_them(store: Registry) -> None:
    version = store.register("a")
    needed = store.client.get_model_version(SETTINGS.name, version).run_id
    with mlflow.start_run(experiment_id=store.experiment) as run:
        mlflow.log_text("a report", "reports/report.html")
    assert found() == []
    store.client.delete_run(run.info.run_id)
    store.client.delete_run(needed)
    (going,) = collect()
    assert (going.kind, going.name, going.size) == ("deleted run", run.info.run_id, 8)
    assert not Path("mlflow/artifacts", run.info.run_id, "artifacts").exists()
    assert found() == []
    promotion.promote(SETTINGS)  # reads the decision of the other deleted run


@pytest.mark.parametrize(
    "step", ["delete_model_version", "delete_artifacts", "delete_logged_model"]
)
def test_a_kill_while_a_version_goes_leaves_what_the_next_gc_finishes(
    store: Registry, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner: Any = LocalArtifactRepository if step == "delete_artifacts" else MlflowClient
    for content in "abc":
        version = store.register(content)
        run = store.client.get_model_version(SETTINGS.name, version).run_id
        store.client.set_tag(run, "decision", "accepted")
        promotion.promote(SETTINGS)
    place, before = store.stored("1"), store.aliases()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, step, killed)
        collect()
    assert store.aliases() == before
    (rest,) = collect()
    assert rest.kind == ("version" if step == "delete_model_version" else "logged model")
    assert not place.exists() and found() == []
    promotion.rollback(SETTINGS)


def test_a_promotion_that_was_killed_is_undone_before_anything_is_called_unneeded(
    store: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in "abc":
        store.register(content)
        if content != "c":
            promotion.promote(SETTINGS)
    loads = iter([["a text"]])
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        # Killed after both aliases moved: version 1 has none, and is the previous one after all.
        patch.setattr(promotion, "smoke_tests", lambda store: nullcontext(lambda uri: next(loads)))
        made = promotion._Moves._undo_what_was_killed
        undone = iter([made])  # before the move; who is killed undoes nothing after it
        patch.setattr(
            promotion._Moves,
            "_undo_what_was_killed",
            lambda moves: next(undone, lambda moves: None)(moves),
        )
        promotion.promote(SETTINGS)
    assert str(MlflowClient().get_model_version_by_alias(SETTINGS.name, "previous").version) == "2"
    assert found() == []
    assert store.aliases() == {"candidate": "3", "production": "2", "previous": "1"}


def test_the_experiment_of_the_settings_is_the_only_one_looked_at(
    store: Registry, workspace: Workspace
) -> None:
    with mlflow.start_run(experiment_id=store.experiment) as run:
        mlflow.log_text("a report", "reports/report.html")
    store.client.delete_run(run.info.run_id)
    workspace.set(registry={**REGISTRY, "experiment": "another"})
    assert found() == []
    workspace.set(registry=REGISTRY)
    assert names("deleted run", found()) == [run.info.run_id]
