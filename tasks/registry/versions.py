"""The model registry: versions of a registered model, their lineage and their files.

It has three aliases: ``candidate``, the newest accepted version, ``production``, the version in
use, and ``previous``, the one before it. `tasks/registry/promotion.py` moves the last two.
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
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from pydantic import Field

from pruneflow.artifacts import sha256_file, sha256_json
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.records import Record, RecordT, parse_record
from pruneflow.settings.pipeline import RegistrySettings
from tasks.registry.lock import registry_held
from tasks.registry.registered_model import ALIASES, CANDIDATE, DECISION_RUN, PRODUCTION
from tasks.tracking.location import FOLDER_SCHEMES, has_store
from tasks.tracking.store import connect, store_errors

SERVED_MODEL = Path("mlflow/served_model.py")
DECISION_ARTIFACT = "reports/decision.json"

# A version's number as ``version``, its ``run_id``, and its tags.
Version = dict[str, str]

_FILES = "files_digest"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes


class Lineage(Record):
    """What a version was made from, stored in its tags."""

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
    """A version, whether this registration created it, and whether it is in production."""

    version: str
    new: bool
    in_production: bool


def register(
    settings: RegistrySettings,
    checkpoint: Path,
    run_id: str,
    lineage: Lineage,
    requirements: list[str],
) -> Registered:
    """Register an accepted model as a version with the alias ``candidate``.

    A model whose digest is registered already keeps its version. The tag ``parent`` of a new
    version names the version that was in production at the time. The gates' decision is logged in
    the MLflow run `run_id`; `requirements` are pip requirements of the served model.
    """
    client = connect(settings)
    with registry_held(settings), store_errors(settings):
        production = aliases_of(client, settings.name).get(PRODUCTION)
        known = _by_digest(client, settings.name, lineage.model_digest)
        if known is None:
            tags = {**lineage.tags(), "parent": production or "none"}
            found = _new_version(client, settings.name, checkpoint, run_id, tags, requirements)
        else:
            found = known
        # A known model that is accepted again refers to its newest decision and code.
        for key, value in {**lineage.tags(), DECISION_RUN: run_id}.items():
            client.set_model_version_tag(settings.name, found, key, value)
        client.set_registered_model_alias(settings.name, CANDIDATE, found)
        return Registered(found, known is None, production == found)


def status(settings: RegistrySettings) -> dict[str, Version | None]:
    """Return the version of each alias; None if unset."""
    found: dict[str, Version | None] = dict.fromkeys(ALIASES)
    if not has_store(settings):
        return found
    client = connect(settings)
    with store_errors(settings):
        aliases = aliases_of(client, settings.name)
        for alias in ALIASES:
            if alias in aliases:
                found[alias] = chosen_version(client, settings.name, aliases[alias])
    return found


@contextmanager
def checkpoint(settings: RegistrySettings, version: str) -> Iterator[Path]:
    """Yield the directory of a version's model, verified against the digest in its tags.

    A downloaded copy is deleted afterwards.

    Raises:
        InputError: there is no such version, or its files are damaged.
    """
    client = connect(settings)
    with tempfile.TemporaryDirectory(prefix="pruneflow-model-") as scratch:
        with store_errors(settings):
            chosen = chosen_version(client, settings.name, version)
            directory = _verified_files(client, settings.name, chosen, scratch)
        yield directory


def read_artifact(version: Version, path: str) -> Any:
    """Read a JSON file of the run that a version's gates were decided in.

    Args:
        version: from `status` or `find_version`, which connect to its store.
        path: below the run's artifacts, e.g. ``reports/evaluation.json``.

    Raises:
        DamagedArtifactError: there is no such file, or it is not JSON.
    """
    run_id = _decision_run(version)
    try:
        return json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{path}"))
    except (MlflowException, OSError, ValueError):
        raise DamagedArtifactError(f"MLflow run {run_id} has no readable {path}") from None


def find_record(kind: type[RecordT], version: Version, path: str) -> RecordT | None:
    """Read a record of that run; None if it is missing or does not fit the schema."""
    try:
        return parse_record(kind, read_artifact(version, path), path)
    except DamagedArtifactError:
        return None


def find_version(settings: RegistrySettings, name: str) -> Version:
    """Return the version with a number or an alias.

    Raises:
        InputError: there is no such version, or the alias is unset.
    """
    if not has_store(settings):
        raise InputError(f"{settings.name} has no version yet: `pruneflow run` makes one")
    client = connect(settings)
    with store_errors(settings):
        number = aliases_of(client, settings.name).get(name) if name in ALIASES else name
        if number is None:
            raise InputError(f"{settings.name} has no {name} version: see `pruneflow status`")
        return chosen_version(client, settings.name, number)


def parameters_of(settings: RegistrySettings, version: Version) -> dict[str, str]:
    """Return the settings that a version's gates were decided with, as MLflow keeps them."""
    client = connect(settings)
    with store_errors(settings):
        return dict(client.get_run(_decision_run(version)).data.params)


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
    name: str,
    checkpoint: Path,
    run_id: str,
    tags: Mapping[str, str],
    requirements: list[str],
) -> str:
    # MLflow advises type hints and an input example; mlflow/served_model.py explains why there are
    # none. The warnings are recorded, because MLflow overrides filters.
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings(record=True):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVED_MODEL),
            artifacts={"checkpoint": str(checkpoint)},
            pip_requirements=requirements,
            signature=_signature(),
        )
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        name,
        source=logged.model_uri,
        run_id=run_id,
        tags={**tags, _FILES: files_digest(checkpoint)},
        model_id=logged.model_id,
    )
    return str(made.version)


def _signature() -> ModelSignature:
    """Prompts in, continuations out; MLflow drops parameters that a signature does not name."""
    text = Schema([ColSpec("string")])
    return ModelSignature(text, text, ParamSchema([ParamSpec("max_new_tokens", "long", 64)]))


def _by_digest(client: MlflowClient, name: str, digest: str) -> str | None:
    found = client.search_model_versions(f"name='{name}' and tags.model_digest='{digest}'")
    return max((str(each.version) for each in found), key=int, default=None)


def registered_model(client: MlflowClient, name: str) -> RegisteredModel:
    """Return the registered model; before its first version, one without tags and aliases."""
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return RegisteredModel(name)


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    """Return the version number of each alias of the registered model."""
    aliases = registered_model(client, name).aliases
    return {alias: str(number) for alias, number in aliases.items()}


def chosen_version(client: MlflowClient, name: str, number: str | None) -> Version:
    """Return a version; the candidate when None.

    Raises:
        InputError: there is no such version.
    """
    number = number or aliases_of(client, name).get(CANDIDATE)
    if number is None:
        raise InputError(f"{name} has no candidate: `pruneflow run` makes one")
    try:
        found = client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise InputError(f"{name} has no version {number}: see `pruneflow status`") from None
    tags = {key: str(value) for key, value in sorted(found.tags.items())}
    return {"version": str(found.version), "run_id": str(found.run_id), **tags}


def _decision_run(version: Version) -> str:
    return version.get(DECISION_RUN, version["run_id"])


def _verified_files(client: MlflowClient, name: str, version: Version, scratch: str) -> Path:
    """Return the verified directory of the stored model; downloads go to `scratch`.

    By default, MLflow would leave each download in the temporary folder.
    """
    number = version["version"]
    place = client.get_model_version_download_uri(name, number)
    try:
        stored = Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{name}/{number}",
                dst_path=None if urlparse(place).scheme in FOLDER_SCHEMES else scratch,
            )
        )
        model = mlflow.models.Model.load(str(stored))
        directory = stored / model.flavors["python_function"]["artifacts"]["checkpoint"]["path"]
        digest = files_digest(directory)
    except (MlflowException, OSError, KeyError) as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(
            f"version {number} of {name} cannot be read ({detail}): its files are in {place}; make "
            "them readable, and free the temporary folder if it is full"
        ) from None
    if digest != version.get(_FILES):
        raise InputError(
            f"version {number} of {name} is damaged (the files in {place} are not those that were "
            "registered): delete that version in MLflow and `pruneflow run` again"
        )
    return directory
