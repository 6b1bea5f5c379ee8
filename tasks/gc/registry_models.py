"""Unreferenced items of MLflow's store: versions, logged models, files of deleted runs.

Runs stay in the database, and the reports of every run that is not deleted stay as well: they are
small and document a model. A logged model is removed in this order: the version that names it, its
files, its row. If gc is killed in between, the next one finds a logged model without a version.

`mlflow gc` is not used for deleted runs: it needs the database behind a server, also deletes runs
that registered versions refer to, and does not report sizes.
"""

from collections.abc import Callable, Iterator

import mlflow
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pruneflow.settings.pipeline import RegistrySettings
from tasks.gc.removable import Kind, Removable
from tasks.registry.promotion import history
from tasks.registry.registered_model import rolled_back_in
from tasks.registry.versions import DECISION_RUN, aliases_of
from tasks.tracking.location import has_store
from tasks.tracking.store import connect, store_errors


def unreferenced(settings: RegistrySettings, keep_versions: int = 0) -> list[Removable]:
    """Find unreferenced items in the experiment and the registered model of the settings.

    `keep_versions` of the newest versions without an alias stay.
    """
    if not has_store(settings):
        return []
    client = connect(settings)
    with store_errors(settings):
        return list(_Store(client, settings).unreferenced(keep_versions))


class _Store:
    """MLflow's store and the references in it."""

    def __init__(self, client: MlflowClient, settings: RegistrySettings) -> None:
        self._client, self._settings = client, settings
        self._versions = mlflow.search_model_versions()

    def unreferenced(self, keep_versions: int) -> Iterator[Removable]:
        unused = self._without_alias()[keep_versions:]
        numbers = {str(version.version) for version in unused}
        staying = [
            version
            for version in self._versions
            if version.name != self._settings.name or str(version.version) not in numbers
        ]
        models = {_logged_model(version) for version in staying}
        for version in unused:
            yield self._version(version, models)
        experiment = self._client.get_experiment_by_name(self._settings.experiment)
        if experiment is None:
            return
        named = {_logged_model(version) for version in self._versions}
        yield from self._logged_models(experiment.experiment_id, named)
        runs = {str(version.run_id) for version in staying}
        runs |= {str(version.tags.get(DECISION_RUN)) for version in staying}
        yield from self._deleted_runs(experiment.experiment_id, runs)

    def _without_alias(self) -> list[ModelVersion]:
        """Return the versions that nothing refers to, the newest first.

        A version that was rolled back stays; otherwise a run that produces the same model again
        would promote it.
        """
        ours = [version for version in self._versions if version.name == self._settings.name]
        kept = set(aliases_of(self._client, self._settings.name).values())
        moves = history(self._settings)
        sources = {version.source for version in self._versions}  # of copies
        return [
            version
            for version in sorted(ours, key=lambda each: int(each.version), reverse=True)
            if str(version.version) not in kept
            and f"models:/{version.name}/{version.version}" not in sources
            and not rolled_back_in(moves, str(version.version))
        ]

    def _version(self, version: ModelVersion, staying: set[str | None]) -> Removable:
        name, number, model = version.name, str(version.version), _logged_model(version)
        if model is None or model in staying:
            size, remove_model = 0, lambda: None
        else:
            size, remove_model = self._model_files(model)

        def remove() -> None:
            self._client.delete_model_version(name, number)
            remove_model()

        return self._removable("version", f"{name} version {number}", size, remove)

    def _logged_models(self, experiment: str, named: set[str | None]) -> Iterator[Removable]:
        """Yield models that no version names: the run was killed, or the version was deleted."""
        for model in mlflow.search_logged_models([experiment], output_format="list"):
            if model.model_id not in named and self._is_ours(model.source_run_id):
                size, remove = self._model_files(model.model_id)
                yield self._removable("logged model", model.model_id, size, remove)

    def _is_ours(self, run_id: str | None) -> bool:
        """Whether a run of the pipeline logged it; others may use the experiment too."""
        return bool(run_id) and "decision" in self._client.get_run(str(run_id)).data.tags

    def _model_files(self, model: str) -> tuple[int, Callable[[], None]]:
        place = self._client.get_logged_model(model).artifact_location

        def remove() -> None:
            get_artifact_repository(place).delete_artifacts()
            self._client.delete_logged_model(model)

        return _stored(place), remove

    def _deleted_runs(self, experiment: str, needed: set[str]) -> Iterator[Removable]:
        """Yield the files of deleted runs, which MLflow keeps."""
        deleted = ViewType.DELETED_ONLY
        for run in mlflow.search_runs([experiment], run_view_type=deleted, output_format="list"):
            place = run.info.artifact_uri
            size = _stored(place)
            if size and run.info.run_id not in needed:
                remove = get_artifact_repository(place).delete_artifacts
                yield self._removable("deleted run", run.info.run_id, size, remove)

    def _removable(self, kind: Kind, name: str, size: int, remove: Callable[[], None]) -> Removable:
        return Removable(kind, name, size, store_errors(self._settings)(remove))


def _logged_model(version: ModelVersion) -> str | None:
    """Return the id of the logged model that a version was made from, or None."""
    prefix = "models:/m-"
    if version.model_id:
        return str(version.model_id)
    source = str(version.source)
    return source.removeprefix("models:/") if source.startswith(prefix) else None


def _stored(place: str) -> int:
    """Return the size of all files below a local or remote artifact location, in bytes."""
    repository, size = get_artifact_repository(place), 0
    folders: list[str | None] = [None]
    while folders:
        for entry in repository.list_artifacts(folders.pop()):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                size += int(entry.file_size or 0)
    return size
