"""Whether a summary is still about the files that there are."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pruneflow.artifacts import read_json, sha256_json
from pruneflow.errors import DamagedArtifactError
from pruneflow.models.digests import model_digest
from pruneflow.paths import (
    BASELINE,
    CALIBRATION_SET,
    DOCUMENTS,
    EVALUATION,
    HELD_OUT,
    LATENCY,
    MODEL,
    QUESTIONS,
)
from pruneflow.settings.pipeline import PIPELINE_FILE, PipelineSettings


def stale(summary: dict[str, Any], settings: PipelineSettings) -> list[str]:
    """Name what is no longer as it was when the summary was made.

    Args:
        summary: what the stage `report` wrote.
        settings: those of now.

    Returns:
        A sentence for each file or folder that is missing or has another digest; none when the
        summary is fresh.
    """
    kept = summary.get("digests") or {}
    reports = kept.get("reports") or {}
    now: dict[Path, tuple[Any, Callable[[], Any]]] = {
        MODEL: (kept.get("pruned"), lambda: model_digest(MODEL)),
        PIPELINE_FILE: (
            kept.get("settings"),
            settings.digest,
        ),
    }
    for name, path in (
        ("documents", DOCUMENTS),
        ("calibration_set", CALIBRATION_SET),
        ("held_out", HELD_OUT),
        ("questions", QUESTIONS),
    ):
        now[path] = (kept.get(name), partial(_manifest_digest, path))
    for path in (BASELINE, EVALUATION, LATENCY):
        now[path] = (reports.get(path.stem), partial(_json_digest, path))
    return [sentence for place in now if (sentence := _changed(place, *now[place]))]


def _manifest_digest(directory: Path) -> Any:
    return read_json(directory / "manifest.json")["digest"]


def _json_digest(path: Path) -> str:
    return sha256_json(read_json(path))


def _changed(place: Path, then: Any, digest: Callable[[], Any]) -> str | None:
    try:
        if then is not None and digest() == then:
            return None
    except DamagedArtifactError as error:
        return f"The report is stale: {error}."
    except (KeyError, TypeError):
        pass
    return f"The report is stale: {place} is not what it was made from; run `pruneflow run` again."
