"""Collect what `pruneflow compare` shows of a registered version or a model of the workspace.

For a version it comes from its MLflow run; for a round, the dense and the delivered model from
their records, and from the reports about the same digest.
"""

from pathlib import Path
from typing import Any

from pruneflow.artifacts import read_json
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.judge.model_comparison import SIZES, Side
from pruneflow.models.digests import weight_file_bytes
from pruneflow.models.round_record import RECORD, read_round_record
from pruneflow.paths import BASELINE, CHECKPOINTS, EVALUATION, MODEL, SUMMARY
from pruneflow.report.dvc_plots import HEALTH
from pruneflow.settings.pipeline import DENSE, PipelineSettings
from tasks.registry import versions
from tasks.registry.production import EVALUATION_ARTIFACT
from tasks.tracking.runs import flatten

SUMMARY_ARTIFACT = "reports/summary.json"
DELIVERED = "model"
# Settings that a round's record keeps.
_RECORDED = {"pruning.layout": "layout", "pruning.score": "score", "pruning.refit": "refit"}


def find_side(name: str, settings: PipelineSettings) -> Side:
    """Return one side of a comparison.

    Args:
        name: a version's number or alias, a round, ``dense`` or ``model``, the delivered one.
        settings: the pipeline's.

    Raises:
        InputError: there is no such version or model, or it was skipped.
    """
    if name.isdigit() or name in versions.ALIASES:
        return _version(name, settings)
    directory = MODEL if name == DELIVERED else CHECKPOINTS / name
    if not (directory / RECORD).is_file():
        there = [path.parent.name for path in sorted(CHECKPOINTS.glob(f"[!.]*/{RECORD}"))]
        known = [*versions.ALIASES, *([DELIVERED] if MODEL.is_dir() else []), *there]
        raise InputError(
            f"there is no model {name} to compare: give a version's number or one of "
            f"{', '.join(known)}"
        )
    return _directory(name, directory, settings)


def _version(name: str, settings: PipelineSettings) -> Side:
    version = versions.find_version(settings.registry, name)
    tags = {key: str(value) for key, value in version.tags.items()}
    digest = tags.get("model_digest", "")

    def kept(path: str) -> dict[str, Any]:
        try:
            found = versions.read_artifact_of(version, path)
        except DamagedArtifactError:
            return {}
        return found if isinstance(found, dict) else {}

    evaluation, summary = kept(EVALUATION_ARTIFACT), kept(SUMMARY_ARTIFACT)
    if (evaluation.get("model") or {}).get("digest") != digest:
        evaluation = {}
    delivered = (summary.get("model") or {}).get("delivered", "")
    record = kept(f"rounds/{delivered}/{RECORD}") if delivered else {}
    about = {
        "model": digest,
        "dense model": tags.get("dense_digest", ""),
        "calibration set": tags.get("data_digest", ""),
        "all settings": tags.get("recipe_digest", ""),
        "gates": tags.get("gates_digest", ""),
        "code": tags.get("git_commit", ""),
    }
    return Side(
        name=name,
        title=f"version {version.version}",
        sizes=_sizes(evaluation.get("model") or {}),
        evaluation=evaluation or None,
        speed=_speed(summary, digest),
        settings=versions.parameters_of(settings.registry, version),
        digests={key: value for key, value in about.items() if value},
        **_as_round(record, digest),
    )


def _directory(name: str, directory: Path, settings: PipelineSettings) -> Side:
    record = read_round_record(directory).to_json()
    if record["status"] == "skipped":
        raise InputError(
            f"round {name} was skipped, because an earlier round ended the schedule: compare "
            f"{record['delivered']} instead"
        )
    digest, summary = str(record["digest"]), _report(SUMMARY)
    measured = (_report(path) for path in (BASELINE, EVALUATION))
    about = {
        "model": digest,
        "dense model": record["dense"]["digest"],
        "calibration set": record.get("calibration_set", ""),
    }
    digests = summary.get("digests") or {}
    current = digests.get("pruned") == digest and digests.get("settings") == settings.digest()
    if current:
        about["all settings"] = settings.digest()
    own = _as_dense(record, settings) if name == DENSE else _as_round(record, digest)
    titles = {DENSE: "dense model", DELIVERED: "delivered model"}
    return Side(
        name=name,
        title=titles.get(name, f"round {name}"),
        sizes={**_sizes(record), "bytes": weight_file_bytes(directory)},
        evaluation=next(
            (found for found in measured if (found.get("model") or {}).get("digest") == digest),
            None,
        ),
        speed=_speed(summary, digest),
        settings=_settings(settings) if current else _recorded(record),
        digests={key: value for key, value in about.items() if value},
        **own,
    )


def _as_round(record: dict[str, Any], digest: str) -> dict[str, Any]:
    """Health and validation perplexity, unless the model was recovered after the round."""
    if record.get("digest") != digest or "recovered_from" in record or not record.get("health"):
        return {}
    health = {key: record["health"].get(key) for key in HEALTH}
    return {"health": health, "validation": _perplexities(record, "pruned")}


def _as_dense(record: dict[str, Any], settings: PipelineSettings) -> dict[str, Any]:
    """Health and validation perplexity of the dense model, which every round records."""
    first = _report(CHECKPOINTS / next(iter(settings.rounds)) / RECORD)
    if (first.get("dense") or {}).get("digest") != record["digest"]:
        return {}
    return {"health": HEALTH, "validation": _perplexities(first, "dense")}


def _perplexities(record: dict[str, Any], model: str) -> dict[str, float]:
    measured = (record.get("validation") or {}).get(model) or {}
    return {domain: loss["perplexity"] for domain, loss in measured.items()}


def _speed(summary: dict[str, Any], digest: str) -> dict[str, Any] | None:
    """Return the speed of whichever model of a summary has this digest."""
    digests = summary.get("digests") or {}
    which = next((key for key in ("dense", "pruned") if digests.get(key) == digest), None)
    return summary["latency"][which] if which else None


def _sizes(found: dict[str, Any]) -> dict[str, int]:
    return {key: found[key] for key in SIZES if key in found}


def _settings(settings: PipelineSettings) -> dict[str, str]:
    flat = flatten(settings.model_dump(mode="json", exclude={"notify"}))
    return {key: str(value) for key, value in flat.items()}


def _recorded(record: dict[str, Any]) -> dict[str, str]:
    return {name: str(record[key]) for name, key in _RECORDED.items() if key in record}


def _report(path: Path) -> dict[str, Any]:
    """Read a report; empty when it is missing or damaged."""
    try:
        found = read_json(path)
    except DamagedArtifactError:
        return {}
    return found if isinstance(found, dict) else {}
