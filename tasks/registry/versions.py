"""The model registry: versions of one registered model, their lineage and their files.

Three aliases: ``candidate`` is the newest accepted version, ``production`` is in use, ``previous``
was in use before. `tasks/registry/promotion.py` moves the last two.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from pydantic import Field

from pruneflow.artifacts import sha256_file, sha256_json
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.records import Record, RecordT, parse_record
from pruneflow.settings.pipeline import RegistrySettings
from tasks.registry.lock import registry_held
from tasks.registry.registered_model import (
    ALIASES,
    CANDIDATE,
    DECISION_RUN,
    PRODUCTION,
)
from tasks.tracking.location import FOLDER_SCHEMES, has_store
from tasks.tracking.store import connect, store_errors

SERVED_MODEL = Path("mlflow/served_model.py")
DECISION_ARTIFACT = "reports/decision.json"

_FILES = "files_digest"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes


class Lineage(Record):
    """What a version was made from; kept as its tags."""

    schema_version: Literal[1] = Field(1, description="Version of this schema.")
    model_digest: str = Field(description="Digest of weights, configuration and tokenizer.")
    dense_digest: str = Field(description="Digest of the dense model.")
    data_digest: str = Field(description="Digest of the calibration set.")
    recipe_digest: str = Field(description="Digest of every setting that the model depends on.")
    gates_digest: str = Field(description="Digest of configs/gates.yaml.")
    decision_digest: str = Field(description="sha256 of decision.json.")
    git_commit: str = Field(description="Commit of the code.")
    git_dirty: str = Field(description="Whether tracked files differed from it.")
    dvc_lock: str = Field(description="sha256 of dvc.lock, which lists inputs and outputs.")

    def tags(self) -> dict[str, str]:
        """Return the tags of a version."""
        return {key: str(value) for key, value in self.to_json().items()}


class Registered(NamedTuple):
    """A version, whether this registration made it, and whether it is in production."""

    version: str
    new: bool
    in_production: bool


def register(
    settings: RegistrySettings, checkpoint: Path, run_id: str, lineage: Lineage, needs: list[str]
) -> Registered:
    """Make an accepted model a version with alias ``candidate``.

    A model whose digest is registered already keeps its version. A new one names as its ``parent``
    the version that was in production when it was made.

    Args:
        settings: the registry and the registered model's name.
        checkpoint: the model directory.
        run_id: the MLflow run that carries the gates' decision.
        lineage: of the model.
        needs: pip requirements of the served model.
    """
    client = connect(settings)
    with registry_held(settings), store_errors(settings):
        known = _by_digest(client, settings.name, lineage.model_digest)
        found = known or _new_version(client, settings, checkpoint, run_id, lineage, needs)
        # A known model that is accepted again refers to its newest decision and code.
        for key, value in {**lineage.tags(), DECISION_RUN: run_id}.items():
            client.set_model_version_tag(settings.name, found, key, value)
        client.set_registered_model_alias(settings.name, CANDIDATE, found)
        in_production = version_of_alias(client, settings.name, PRODUCTION) == found
        return Registered(found, known is None, in_production)


def status(settings: RegistrySettings) -> dict[str, dict[str, str] | None]:
    """Return, for each alias, its version and the version's tags; None if unset."""
    empty: dict[str, dict[str, str] | None] = dict.fromkeys(ALIASES)
    if not has_store(settings):
        return empty
    client = connect(settings)
    with store_errors(settings):
        versions = {alias: version_of_alias(client, settings.name, alias) for alias in empty}
        for alias, number in versions.items():
            if number is not None:
                found = client.get_model_version(settings.name, number)
                tags = {key: str(value) for key, value in sorted(found.tags.items())}
                empty[alias] = {"version": number, "run_id": str(found.run_id), **tags}
    return empty


@contextmanager
def checkpoint(settings: RegistrySettings, version: str) -> Iterator[Path]:
    """Yield the directory of a version's model, verified against the digest it was stored with.

    A copy that had to be downloaded is deleted afterwards.

    Raises:
        InputError: there is no such version, or its files are damaged.
    """
    client = connect(settings)
    with tempfile.TemporaryDirectory(prefix="pruneflow-model-") as scratch:
        with store_errors(settings):
            chosen = chosen_version(client, settings.name, version)
            directory = _verified_files(client, settings.name, chosen, scratch)
        yield directory


def read_artifact(settings: RegistrySettings, version: Mapping[str, str], path: str) -> Any:
    """Read a JSON file of the run that a version's gates were decided in.

    Args:
        settings: the registry.
        version: from `status`.
        path: below the run's artifacts, e.g. ``reports/evaluation.json``.

    Raises:
        DamagedArtifactError: there is no such file, or it is not JSON.
    """
    connect(settings)
    return _artifact(version.get(DECISION_RUN, version["run_id"]), path)


def read_artifact_of(version: ModelVersion, path: str) -> Any:
    """Read a JSON file of the run that a version's gates were decided in, as `read_artifact`."""
    return _artifact(str(version.tags.get(DECISION_RUN, version.run_id)), path)


def read_record_of(kind: type[RecordT], version: ModelVersion, path: str) -> RecordT | None:
    """Read a record of that run; None where it is missing or has another schema."""
    try:
        return parse_record(kind, read_artifact_of(version, path), path)
    except DamagedArtifactError:
        return None


def find_version(settings: RegistrySettings, name: str) -> ModelVersion:
    """Return the version of a number or an alias.

    Raises:
        InputError: there is no such version, or nothing has that alias.
    """
    if not has_store(settings):
        raise InputError(f"{settings.name} has no version yet: `pruneflow run` makes one")
    client = connect(settings)
    with store_errors(settings):
        number = version_of_alias(client, settings.name, name) if name in ALIASES else name
        if number is None:
            raise InputError(f"{settings.name} has no {name} version: see `pruneflow status`")
        return chosen_version(client, settings.name, number)


def parameters_of(settings: RegistrySettings, version: ModelVersion) -> dict[str, str]:
    """Return the settings that a version's gates were decided with, as MLflow keeps them."""
    client = connect(settings)
    with store_errors(settings):
        run = client.get_run(str(version.tags.get(DECISION_RUN, version.run_id)))
        return {str(key): str(value) for key, value in run.data.params.items()}


def files_digest(directory: Path) -> str:
    """Return one sha256 over the names and bytes of every file below `directory`."""
    return sha256_json(
        {
            path.relative_to(directory).as_posix(): sha256_file(path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
    )


def _new_version(
    client: MlflowClient,
    settings: RegistrySettings,
    checkpoint: Path,
    run_id: str,
    lineage: Lineage,
    needs: list[str],
) -> str:
    # MLflow advises type hints and an input example; mlflow/served_model.py explains why there are
    # none. The warnings are recorded, because MLflow overrides filters.
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings(record=True):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVED_MODEL),
            artifacts={"checkpoint": str(checkpoint)},
            pip_requirements=needs,
            signature=_signature(),
        )
    try:
        client.create_registered_model(settings.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    parent = version_of_alias(client, settings.name, PRODUCTION) or "none"
    tags = {**lineage.tags(), _FILES: files_digest(checkpoint), "parent": parent}
    made = client.create_model_version(
        settings.name, source=logged.model_uri, run_id=run_id, tags=tags, model_id=logged.model_id
    )
    return str(made.version)


def _signature() -> ModelSignature:
    """Prompts in, continuations out; MLflow drops parameters that a signature does not name."""
    text = Schema([ColSpec("string")])
    return ModelSignature(text, text, ParamSchema([ParamSpec("max_new_tokens", "long", 64)]))


def _by_digest(client: MlflowClient, name: str, digest: str) -> str | None:
    found = client.search_model_versions(f"name='{name}' and tags.model_digest='{digest}'")
    return max((str(each.version) for each in found), key=int, default=None)


def version_of_alias(client: MlflowClient, name: str, alias: str) -> str | None:
    """Return the version behind an alias; None when alias or model do not exist."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in _MISSING:
            return None
        raise


def chosen_version(client: MlflowClient, name: str, version: str | None) -> ModelVersion:
    """Return a version; the candidate when None.

    Raises:
        InputError: there is no such version.
    """
    number = version or version_of_alias(client, name, CANDIDATE)
    if number is None:
        raise InputError(f"{name} has no candidate: `pruneflow run` makes one")
    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise InputError(f"{name} has no version {number}: see `pruneflow status`") from None


def _artifact(run_id: str, path: str) -> Any:
    try:
        return json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{path}"))
    except (MlflowException, OSError, ValueError):
        raise DamagedArtifactError(f"MLflow run {run_id} has no readable {path}") from None


def check_files(client: MlflowClient, name: str, version: ModelVersion) -> None:
    """Compare the stored model with the digest taken when it was registered.

    Raises:
        InputError: they differ.
    """
    with tempfile.TemporaryDirectory(prefix="pruneflow-model-") as scratch:
        _verified_files(client, name, version, scratch)


def _verified_files(client: MlflowClient, name: str, version: ModelVersion, scratch: str) -> Path:
    """Return the verified directory of the stored model, in `scratch` if it has to be downloaded.

    By default MLflow would leave a copy in the temporary folder each time.
    """
    place = client.get_model_version_download_uri(name, version.version)
    try:
        stored = Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{name}/{version.version}",
                dst_path=None if urlparse(place).scheme in FOLDER_SCHEMES else scratch,
            )
        )
        model = mlflow.models.Model.load(str(stored))
        directory = stored / model.flavors["python_function"]["artifacts"]["checkpoint"]["path"]
        if files_digest(directory) == version.tags.get(_FILES):
            return directory
    except (mlflow.MlflowException, OSError, KeyError):
        pass
    raise InputError(
        f"version {version.version} of {name} is damaged (its files are not those that were "
        "registered): delete that version in MLflow and `pruneflow run` again"
    )
