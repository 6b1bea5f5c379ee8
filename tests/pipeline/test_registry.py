"""Versions, aliases and what keeps a model from production, on a real store."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from pruneflow.errors import InputError
from tasks.registry import promotion, versions
from tasks.tracking.store import connect, find_experiment
from tests.pipeline.garbage import collect
from tests.pipeline.registry import SETTINGS, Registry
from tests.pipeline.toy import Workspace


def test_the_status_of_nothing_is_nothing_and_makes_no_store(workspace: Workspace) -> None:
    assert set(versions.status(SETTINGS).values()) == {None}
    assert not Path("mlflow/mlflow.db").exists()


def test_one_digest_is_one_version(store: Registry) -> None:
    assert store.register("a") == store.register("a") == "1"
    assert store.register("b") == "2"
    assert store.register("a") == "1"
    assert store.aliases() == {"candidate": "1"}


def test_promotion_rollback_and_rollback_again(store: Registry) -> None:
    store.register("a")
    assert promotion.promote(SETTINGS) == promotion.Move("1", None, True)
    store.register("b")
    assert promotion.promote(SETTINGS) == promotion.Move("2", "1", True)
    assert store.aliases() == {"candidate": "2", "production": "2", "previous": "1"}
    promotion.rollback(SETTINGS)
    assert store.aliases() == {"candidate": "2", "production": "1", "previous": "2"}
    promotion.rollback(SETTINGS)
    assert store.aliases() == {"candidate": "2", "production": "2", "previous": "1"}


def test_promoting_what_is_in_production_changes_nothing(store: Registry) -> None:
    store.put_into_production("a", "b")
    before = store.aliases()
    move = promotion.promote(SETTINGS, "2")
    assert not move.changed
    assert move.sentence("toy") == "version 2 of toy is in production already"
    assert store.aliases() == before


def test_without_a_candidate_or_a_previous_version_there_is_one_line(store: Registry) -> None:
    with pytest.raises(InputError, match="no candidate"):
        promotion.promote(SETTINGS)
    with pytest.raises(InputError, match="no previous version"):
        promotion.rollback(SETTINGS)
    store.put_into_production("a")
    with pytest.raises(InputError, match="no previous version"):
        promotion.rollback(SETTINGS)
    for unknown in ("7", "x"):
        with pytest.raises(InputError, match=f"has no version {unknown}"):
            promotion.promote(SETTINGS, unknown)


def test_a_refused_version_is_not_promoted(store: Registry) -> None:
    store.register("a", accepted=False)
    with pytest.raises(InputError, match="refused by the gates"):
        promotion.promote(SETTINGS)
    assert "production" not in store.aliases()


@pytest.mark.parametrize("tag", ["decision_digest", "model_digest"])
def test_a_decision_about_another_model_does_not_count(store: Registry, tag: str) -> None:
    version = store.register("a")
    store.client.set_model_version_tag(SETTINGS.name, version, tag, "another")
    with pytest.raises(InputError, match="not the one it was registered with"):
        promotion.promote(SETTINGS)


def test_a_version_nobody_decided_on_is_not_promoted(store: Registry) -> None:
    store.register("a")
    source = store.client.get_model_version(SETTINGS.name, "1").source
    run = store.client.create_run(store.experiment)
    version = store.client.create_model_version(SETTINGS.name, source, run.info.run_id)
    with pytest.raises(InputError, match="no readable decision"):
        promotion.promote(SETTINGS, str(version.version))


def test_a_damaged_version_is_neither_promoted_nor_rolled_back_to(store: Registry) -> None:
    store.put_into_production("a")
    store.register("b")
    (found,) = store.stored("2").rglob("config.json")
    found.write_text("c")
    with pytest.raises(InputError, match="version 2 of pruneflow is damaged"):
        promotion.promote(SETTINGS)
    found.write_text("b")
    promotion.promote(SETTINGS)
    (found,) = store.stored("1").rglob("config.json")
    found.unlink()
    with pytest.raises(InputError, match="version 1 of pruneflow is damaged"):
        promotion.rollback(SETTINGS)
    assert store.aliases()["production"] == "2"


def test_a_version_that_cannot_be_read_now_is_not_called_damaged(store: Registry) -> None:
    store.register("a")
    artifacts = Path(SETTINGS.artifact_location, "models")
    artifacts.rename("away")
    with pytest.raises(InputError, match="version 1 of pruneflow cannot be read") as caught:
        promotion.promote(SETTINGS)
    assert "mlflow/artifacts/models/" in str(caught.value)
    assert "delete" not in str(caught.value)
    Path("away").rename(artifacts)
    promotion.promote(SETTINGS)
    assert store.aliases()["production"] == "1"


def test_code_that_is_not_committed_reaches_production_only_by_a_run(store: Registry) -> None:
    store.register("a", dirty="true")
    with pytest.raises(InputError, match="not committed"):
        promotion.promote(SETTINGS)
    promotion.promote_accepted(SETTINGS, "1")
    assert store.aliases()["production"] == "1"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.mkdir, "MLflow's store mlflow/mlflow.db cannot"),
        (lambda file: file.write_text("not a database"), "file is not a database"),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_line(
    workspace: Workspace, damage: Callable[[Path], object], message: str
) -> None:
    damage(Path("mlflow/mlflow.db"))
    with pytest.raises(InputError, match=message):
        connect(SETTINGS)


def test_a_deleted_experiment_is_found_before_the_first_stage(store: Registry) -> None:
    store.client.delete_experiment(store.experiment)
    with pytest.raises(InputError, match=r"pruneflow is deleted: restore it with `mlflow exp"):
        find_experiment(store.client, SETTINGS)
    with pytest.raises(InputError, match="is deleted"):
        Registry()
    store.client.restore_experiment(store.experiment)
    find_experiment(store.client, SETTINGS)


def test_results_never_go_into_a_run_that_the_environment_names(
    store: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow.start_run(experiment_id=store.experiment) as foreign:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", foreign.info.run_id)
    version = Registry().register("a")
    assert versions.find_version(SETTINGS, version)["run_id"] != foreign.info.run_id


NAME = "feature #1: [a] {b} & c+d;e@f~!$(g)"


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_artifacts_follow_a_workspace(
    store: Registry, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A copy must not write to the files of the original, nor delete them."""
    for content in "ab":
        store.register(content)
        promotion.promote(SETTINGS)
    original = workspace.folder
    folder = original.with_name(NAME)
    if how == "moved":
        original.rename(folder)
    else:
        shutil.copytree(original, folder)
    monkeypatch.chdir(folder)
    elsewhere = Registry()
    for number in "12":
        with versions.checkpoint(SETTINGS, number) as directory:
            assert directory.is_relative_to(folder)
    elsewhere.register("c")
    promotion.promote(SETTINGS)
    Workspace(folder, folder / "prefect").set(
        registry={"name": SETTINGS.name, "experiment": SETTINGS.experiment}
    )
    collect()  # version 1
    assert elsewhere.aliases() == {"candidate": "3", "production": "3", "previous": "2"}
    with pytest.raises(InputError, match="has no version 1"):
        versions.find_version(SETTINGS, "1")
    if how == "moved":
        assert not original.exists()
        return
    monkeypatch.chdir(original)
    again = Registry()
    assert again.aliases() == {"candidate": "2", "production": "2", "previous": "1"}
    for number in "12":
        with versions.checkpoint(SETTINGS, number) as directory:
            assert directory.is_relative_to(original)


def test_a_store_without_its_artifacts_is_refused(
    store: Registry, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register("a")
    folder = workspace.folder.with_name("copy")
    shutil.copytree(workspace.folder, folder)
    shutil.rmtree(folder / SETTINGS.artifact_location)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"has no mlflow/artifacts: copy that folder too"):
        connect(SETTINGS)


@pytest.mark.parametrize("name", ["a?b", "a'b", "feature%2Flogin"])
def test_a_folder_that_mlflow_cannot_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(InputError, match=r"whose path has [?'%] .*: rename that folder"):
        connect(SETTINGS)
    assert not list(tmp_path.rglob("*.db"))
