"""Whether a summary was made from the current files."""

from collections.abc import Callable
from pathlib import Path

from pruneflow.artifacts import read_json, sha256_json
from pruneflow.errors import DamagedArtifactError
from pruneflow.judge.summary import Summary
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


def stale(summary: Summary, settings: PipelineSettings) -> list[str]:
    """Name what has changed since the summary was made.

    Args:
        summary: what the stage `report` wrote.
        settings: the current ones.

    Returns:
        A sentence for each file or folder that is missing or has another digest; none when the
        summary is fresh.
    """
    then = summary.digests
    files: list[tuple[Path, str, Callable[[Path], str]]] = [
        (MODEL, then.pruned, model_digest),
        (PIPELINE_FILE, then.settings, lambda _: settings.digest()),
        (DOCUMENTS, then.documents, _manifest_digest),
        (CALIBRATION_SET, then.calibration_set, _manifest_digest),
        (HELD_OUT, then.held_out, _manifest_digest),
        (QUESTIONS, then.questions, _manifest_digest),
        (BASELINE, then.reports.baseline, json_digest),
        (EVALUATION, then.reports.evaluation, json_digest),
        (LATENCY, then.reports.latency, json_digest),
    ]
    return [sentence for file in files if (sentence := _changed(*file))]


def json_digest(path: Path) -> str:
    """Return the digest of a JSON file as it is stored."""
    return sha256_json(read_json(path))


def _manifest_digest(directory: Path) -> str:
    return str(read_json(directory / "manifest.json")["digest"])


def _changed(place: Path, then: str, digest: Callable[[Path], str]) -> str | None:
    try:
        if digest(place) == then:
            return None
    except DamagedArtifactError as error:
        return f"The report is stale: {error}."
    except (KeyError, TypeError):
        pass
    return f"The report is stale: {place} is not what it was made from; run `pruneflow run` again."
