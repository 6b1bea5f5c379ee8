"""Log a run or a sweep to MLflow: settings, metrics, reports and records."""

import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow import ActiveRun, MlflowClient
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

from pruneflow.artifacts import read_json
from pruneflow.judge.gates import Decision
from pruneflow.judge.pareto import Row
from pruneflow.judge.summary import Summary
from pruneflow.models.round_record import read_round_record
from pruneflow.paths import CALIBRATION_SET, CHECKPOINTS, REPORTS, SWEEP_FILE, SWEEP_TABLE
from pruneflow.records import Record
from pruneflow.report.sweep_table import sweep_rows
from pruneflow.settings.pipeline import NotifySettings, PipelineSettings, RegistrySettings
from tasks.prefect.webhook import without_secrets
from tasks.tracking.store import connect, experiment, store_errors

_DIGEST_CHARACTERS = 36  # MLflow's limit of a dataset's digest
_WORKSPACE = "workspace"  # tag of a run: host and folder
_SWEEP_LINES = "sweep/table.json"


def log_run(
    settings: PipelineSettings,
    summary: Summary,
    decision: Decision,
    tags: Mapping[str, str],
) -> str:
    """Log a finished pipeline as an MLflow run; returns its id.

    Settings become parameters, named ``section.key``, and every number of the summary a metric.
    Refused runs are tagged with the reasons.
    """
    client = connect(settings.registry)
    with (
        store_errors(settings.registry),
        _run(client, settings.registry, _run_name(settings)) as run,
    ):
        mlflow.log_params(parameters(settings))
        mlflow.log_metrics(_metrics(_values(summary)))
        for step, record in enumerate(_steps(settings, summary)):
            mlflow.log_metrics(_metrics({"round": record}), step=step)
        mlflow.set_tags({**tags, **_decision_tags(decision)})
        _log_calibration_set()
        _log_files(settings)
        return str(run.info.run_id)


def log_sweep(
    settings: RegistrySettings,
    rows: Sequence[Row],
    recipes: Mapping[str, PipelineSettings],
    summaries: Mapping[str, Summary],
) -> str:
    """Log a sweep as an MLflow run with a nested run for each recipe; returns its id."""
    client = connect(settings)
    lines = sweep_rows(rows)
    with store_errors(settings), _run(client, settings, "sweep") as parent:
        failures = sum(row["error"] is not None for row in rows)
        mlflow.log_metrics({"recipes": len(rows), "recipes_failed": failures})
        mlflow.log_table({key: [line[key] for line in lines] for key in lines[0]}, _SWEEP_LINES)
        mlflow.log_artifact(str(SWEEP_TABLE), "sweep")
        mlflow.log_artifact(str(SWEEP_FILE), "sweep")
        for row in rows:
            name = row["recipe"]
            mlflow.start_run(
                experiment_id=parent.info.experiment_id, run_name=name, nested=True, tags=_here()
            )
            try:
                mlflow.log_params(parameters(recipes[name]))
                if name in summaries:
                    mlflow.log_metrics(_metrics(_values(summaries[name])))
                mlflow.set_tags(_recipe_tags(row))
            finally:
                mlflow.end_run("FAILED" if row["error"] else "FINISHED")
        return str(parent.info.run_id)


def parameters(settings: PipelineSettings) -> dict[str, Any]:
    """Return the parameters of a run: the settings that its result depends on, by dotted name."""
    return _flatten(settings.model_dump(mode="json", exclude={"notify"}))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one with dotted keys; lists and scalars stay as they are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return every number of nested mappings as a metric, named ``perplexity/law/pruned``.

    MLflow groups metrics by slashes. Characters that it does not allow become underscores.
    """
    return {
        re.sub(r"[^\w\-. /]", "_", key).replace(".", "/"): float(value)
        for key, value in _flatten(values).items()
        if isinstance(value, (int, float))
    }


def _values(record: Record) -> dict[str, Any]:
    """Return a record's JSON values without the version of its schema."""
    return record.model_dump(mode="json", exclude={"schema_version"})


def _run(client: MlflowClient, settings: RegistrySettings, name: str) -> ActiveRun:
    """Start a run, and mark runs of this workspace that are still RUNNING as KILLED."""
    place = experiment(client, settings)
    for other in client.search_runs([place], "attributes.status = 'RUNNING'"):
        if other.data.tags.get(_WORKSPACE) == _here()[_WORKSPACE]:
            client.set_terminated(other.info.run_id, "KILLED")
    return mlflow.start_run(experiment_id=place, run_name=name, tags=_here())


def _here() -> dict[str, str]:
    return {_WORKSPACE: f"{socket.gethostname()}:{Path.cwd()}"}


def _steps(settings: PipelineSettings, summary: Summary) -> Iterator[dict[str, Any]]:
    """Yield the metrics of each step: step 0 is the dense model, the others are the rounds."""
    rounds = [read_round_record(CHECKPOINTS / name) for name in settings.rounds]
    size, first = summary.parameters, rounds[0].validation
    yield {
        "achieved_ratio": 0.0,
        "parameters": size.dense,
        "block_weights": size.block_weights.dense,
        # The dense model's losses, under the same name as the rounds' losses.
        "validation": {"pruned": first.dense if first else {}},
    }
    yield from map(_values, rounds)


def _run_name(settings: PipelineSettings) -> str:
    final = settings.rounds[settings.final_round]
    goal = f"{final.ratio:.0%} less" if final.ratio is not None else str(final)
    return f"{settings.model.name}-{goal}".replace(" ", "-")


def _decision_tags(decision: Decision) -> dict[str, str]:
    if decision.accepted:
        return {"decision": "accepted"}
    return {"decision": "refused", "reasons": "\n".join(decision.reasons)}


def _recipe_tags(row: Row) -> dict[str, str]:
    if row["figures"] is None:
        return {"error": str(row["error"])}
    pareto = "true" if row["pareto"] else "false"
    return {"pareto": pareto, "model_digest": row["figures"]["digest"]}


def _log_calibration_set() -> None:
    digest = str(read_json(CALIBRATION_SET / "manifest.json")["digest"])
    dataset = MetaDataset(  # type: ignore[abstract]  # MLflow leaves `profile` to it by mistake
        LocalArtifactDatasetSource(str(CALIBRATION_SET)),
        name="calibration",
        digest=digest[:_DIGEST_CHARACTERS],
    )
    mlflow.log_input(dataset, context="calibration")
    mlflow.set_tag("calibration_digest", digest)


def _log_files(settings: PipelineSettings) -> None:
    """Log every small file that documents how the model was made."""
    for path in sorted(REPORTS.iterdir()):
        # The sweep's table is about other models.
        if path.is_file() and not path.name.startswith(".") and path != SWEEP_TABLE:
            mlflow.log_artifact(str(path), "reports")
    _log_configs(settings.notify)
    # Not under its own name: DVC reads any dvc.yaml below the workspace.
    mlflow.log_text(Path("dvc.yaml").read_text(encoding="utf-8"), "pipeline/stages.yaml")
    mlflow.log_artifact("dvc.lock", "pipeline")
    for name in settings.rounds:
        mlflow.log_artifact(str(CHECKPOINTS / name / "round.json"), f"rounds/{name}")
    for name in ("set", "documents"):
        manifest = CALIBRATION_SET.parent / name / "manifest.json"
        if manifest.is_file():
            mlflow.log_artifact(str(manifest), f"calibration/{name}")


def _log_configs(settings: NotifySettings) -> None:
    """Log configs/ with the webhook's URL masked, which is a secret."""
    with tempfile.TemporaryDirectory(prefix="pruneflow-configs-") as place:
        copy = Path(shutil.copytree("configs", Path(place) / "configs"))
        if settings.webhook is not None:
            secret = settings.webhook.encode()
            masked = without_secrets(settings.webhook).encode()
            for path in filter(Path.is_file, copy.rglob("*")):
                path.write_bytes(path.read_bytes().replace(secret, masked))
        mlflow.log_artifacts(str(copy), "configs")
