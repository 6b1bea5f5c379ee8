"""The model registry: register an accepted model, move production to it, and back.

Three aliases of one registered model: ``candidate`` is the newest accepted version, ``production``
is in use, ``previous`` was in use before. Moving two aliases takes two writes, so the move is
noted in a tag of the registered model first: whoever comes next finishes it after a kill.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneflow.artifacts import sha256_file, sha256_json
from pruneflow.config import RegistrySettings
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.workspace import registry_lock
from tasks.tracking import connect, store_errors, store_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CANDIDATE, PRODUCTION, PREVIOUS = "candidate", "production", "previous"
SERVED_MODEL = Path("mlflow/served_model.py")
DECISION_ARTIFACT = "reports/decision.json"

_PENDING = "pending_aliases"
_FILES = "files_digest"
_DECISION_RUN = "decision_run"
_ROLLED_BACK = "rolled_back"


@dataclass(frozen=True)
class Lineage:
    """What a version came from; kept as its tags."""

    model_digest: str
    data_digest: str
    decision_digest: str
    git_commit: str
    git_dirty: str
    dvc_lock: str

    def tags(self) -> dict[str, str]:
        """Return the tags of a version."""
        return {key: str(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Move:
    """What a promotion or rollback did to the aliases."""

    version: str
    former: str | None
    changed: bool

    def sentence(self, name: str) -> str:
        """Say it in one line."""
        if not self.changed:
            return f"version {self.version} of {name} is in production already"
        former = f"; version {self.former} is kept as previous" if self.former else ""
        return f"version {self.version} of {name} is in production{former}"


def register(
    settings: RegistrySettings, checkpoint: Path, run_id: str, lineage: Lineage, needs: list[str]
) -> str:
    """Make an accepted model a version with alias ``candidate``; returns the version.

    A model whose digest is registered already keeps its version.

    Args:
        settings: the registry and the registered model's name.
        checkpoint: the model directory.
        run_id: the MLflow run that carries the gates' decision.
        lineage: what the model came from.
        needs: pip requirements of the served model.
    """
    client = connect(settings)
    with registry_lock(), store_errors(settings):
        _finish_pending(client, settings.name)
        found = _by_digest(client, settings.name, lineage.model_digest)
        if found is None:
            found = _new_version(client, settings, checkpoint, run_id, lineage, needs)
        # A known model that is accepted again stands on its newest decision and code.
        for key, value in {**lineage.tags(), _DECISION_RUN: run_id}.items():
            client.set_model_version_tag(settings.name, found, key, value)
        client.set_registered_model_alias(settings.name, CANDIDATE, found)
        return found


def promote(settings: RegistrySettings, version: str | None = None, by_hand: bool = True) -> Move:
    """Put a version into production; the one in use becomes ``previous``. Safe to repeat.

    Args:
        settings: the registry and the registered model's name.
        version: which one; the candidate when None.
        by_hand: a person asks for it, so the code it came from must have been committed.

    Raises:
        InputError: there is no such version, its gates did not accept it, its files are not those
            that were registered, or its code was not committed.
    """
    client = connect(settings)
    with registry_lock(), store_errors(settings):
        _finish_pending(client, settings.name)
        chosen = _chosen(client, settings.name, version)
        number = str(chosen.version)  # the store hands out numbers, aliases take text
        current = _alias(client, settings.name, PRODUCTION)
        if current == number:
            return Move(current, _alias(client, settings.name, PREVIOUS), changed=False)
        _check_accepted(client, chosen)
        _check_files(settings.name, chosen)
        if by_hand and chosen.tags.get("git_dirty") == "true":
            raise InputError(
                f"version {chosen.version} was made by code that is not committed: commit it, "
                "then `pruneflow run` and promote again"
            )
        aliases = {PRODUCTION: number}
        if current is not None:
            aliases[PREVIOUS] = current
        _move(client, settings.name, aliases)
        if _ROLLED_BACK in chosen.tags:
            client.delete_model_version_tag(settings.name, number, _ROLLED_BACK)
        return Move(number, current, changed=True)


def was_rolled_back(settings: RegistrySettings, version: str) -> bool:
    """Whether somebody took this version out of production: only a person puts it back."""
    client = connect(settings)
    with store_errors(settings):
        return _ROLLED_BACK in client.get_model_version(settings.name, version).tags


def rollback(settings: RegistrySettings) -> Move:
    """Put ``previous`` back into production and keep the other as ``previous``.

    Raises:
        InputError: nothing was in production before, or its files are damaged.
    """
    client = connect(settings)
    with registry_lock(), store_errors(settings):
        before = _alias(client, settings.name, PRODUCTION)
        finished = _finish_pending(client, settings.name)
        current = _alias(client, settings.name, PRODUCTION)
        previous = _alias(client, settings.name, PREVIOUS)
        if finished == "rollback" and current is not None:
            return Move(current, previous, changed=before != current)
        if current is None or previous is None:
            raise InputError(
                f"{settings.name} has no previous version to go back to: see `pruneflow status`"
            )
        _check_files(settings.name, client.get_model_version(settings.name, previous))
        client.set_model_version_tag(settings.name, current, _ROLLED_BACK, "true")
        _move(client, settings.name, {PRODUCTION: previous, PREVIOUS: current}, "rollback")
        target = client.get_model_version(settings.name, previous)
        if _ROLLED_BACK in target.tags:
            client.delete_model_version_tag(settings.name, previous, _ROLLED_BACK)
        return Move(previous, current, changed=True)


def status(settings: RegistrySettings) -> dict[str, dict[str, str] | None]:
    """Return, for each alias, the version it stands for and the version's tags; None if unset."""
    empty: dict[str, dict[str, str] | None] = dict.fromkeys((PRODUCTION, CANDIDATE, PREVIOUS))
    file = store_file(settings)
    if file is not None and not file.exists():
        return empty
    client = connect(settings)
    with store_errors(settings):
        versions = {alias: _alias(client, settings.name, alias) for alias in empty}
        for alias, number in versions.items():
            if number is not None:
                found = client.get_model_version(settings.name, number)
                tags = {key: str(value) for key, value in sorted(found.tags.items())}
                empty[alias] = {"version": number, "run_id": str(found.run_id), **tags}
    return empty


def checkpoint(settings: RegistrySettings, version: str) -> Path:
    """Return the directory of a version's model, verified against the digest it was stored with.

    Raises:
        InputError: there is no such version, or its files are damaged.
    """
    client = connect(settings)
    with store_errors(settings):
        return _check_files(settings.name, _chosen(client, settings.name, version))


def read_artifact(settings: RegistrySettings, version: Mapping[str, str], path: str) -> Any:
    """Read a JSON file of the run that a version's gates were decided in.

    Args:
        settings: the registry.
        version: what `status` says of it.
        path: below the run's artifacts, e.g. ``reports/evaluation.json``.

    Raises:
        DamagedArtifactError: there is no such file, or it is not JSON.
    """
    connect(settings)
    return _artifact(version.get(_DECISION_RUN, version["run_id"]), path)


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
    client: "MlflowClient",
    settings: RegistrySettings,
    checkpoint: Path,
    run_id: str,
    lineage: Lineage,
    needs: list[str],
) -> str:
    import mlflow
    from mlflow.exceptions import MlflowException

    # Its advice is recorded, not shown: it wants type hints and an input example, and
    # mlflow/served_model.py says why there are none. A filter would not do, MLflow sets its own.
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
    tags = {**lineage.tags(), _FILES: files_digest(checkpoint)}
    made = client.create_model_version(
        settings.name, source=logged.model_uri, run_id=run_id, tags=tags, model_id=logged.model_id
    )
    return str(made.version)


def _signature() -> "ModelSignature":
    """Prompts in, continuations out; MLflow drops parameters that a signature does not name."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    return ModelSignature(text, text, ParamSchema([ParamSpec("max_new_tokens", "long", 64)]))


def _by_digest(client: "MlflowClient", name: str, digest: str) -> str | None:
    found = client.search_model_versions(f"name='{name}' and tags.model_digest='{digest}'")
    return max((str(each.version) for each in found), key=int, default=None)


def _alias(client: "MlflowClient", name: str, alias: str) -> str | None:
    """Return the version behind an alias; None when alias or model do not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _chosen(client: "MlflowClient", name: str, version: str | None) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    number = version or _alias(client, name, CANDIDATE)
    if number is None:
        raise InputError(f"{name} has no candidate: `pruneflow run` makes one")
    try:
        return client.get_model_version(name, number)
    except MlflowException:
        raise InputError(f"{name} has no version {number}: see `pruneflow status`") from None


def _artifact(run_id: str, path: str) -> Any:
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{path}"))
    except (MlflowException, OSError, ValueError):
        raise DamagedArtifactError(f"MLflow run {run_id} has no readable {path}") from None


def _check_accepted(client: "MlflowClient", version: "ModelVersion") -> None:
    """Read the decision that the version's own run keeps; the tag says which bytes it had."""
    try:
        decision = _artifact(
            str(version.tags.get(_DECISION_RUN, version.run_id)), DECISION_ARTIFACT
        )
    except DamagedArtifactError:
        raise InputError(
            f"version {version.version} has no readable decision of the gates: only versions that "
            "`pruneflow run` accepted can be promoted"
        ) from None
    if not isinstance(decision, Mapping) or decision.get("accepted") is not True:
        raise InputError(
            f"version {version.version} was refused by the gates: see its {DECISION_ARTIFACT}"
        )
    if sha256_json(decision) != version.tags.get("decision_digest") or decision.get(
        "model"
    ) != version.tags.get("model_digest"):
        raise InputError(
            f"version {version.version} carries another decision than the one it was registered "
            "with: only versions that `pruneflow run` accepted can be promoted"
        )


def _check_files(name: str, version: "ModelVersion") -> Path:
    """Compare the stored model with the digest taken when it was registered; return its place."""
    import mlflow

    uri = f"models:/{name}/{version.version}"
    try:
        stored = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
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


def _move(
    client: "MlflowClient", name: str, aliases: dict[str, str], kind: str = "promotion"
) -> None:
    note = json.dumps({"kind": kind, "aliases": aliases}, sort_keys=True)
    client.set_registered_model_tag(name, _PENDING, note)
    _finish_pending(client, name)


def _finish_pending(client: "MlflowClient", name: str) -> str | None:
    """Write the aliases of a move that was begun; returns its kind, None when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        note = client.get_registered_model(name).tags.get(_PENDING)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if note is None:
        return None
    move = json.loads(note)
    for alias, version in move["aliases"].items():
        client.set_registered_model_alias(name, alias, version)
    client.delete_registered_model_tag(name, _PENDING)
    return str(move["kind"])
