"""Whether a summary was made from the current files."""

from collections.abc import Callable
from functools import partial
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
    now: dict[Path, tuple[str, Callable[[], str]]] = {
        MODEL: (then.pruned, lambda: model_digest(MODEL)),
        PIPELINE_FILE: (then.settings, settings.digest),
        DOCUMENTS: (then.documents, partial(_manifest_digest, DOCUMENTS)),
        CALIBRATION_SET: (then.calibration_set, partial(_manifest_digest, CALIBRATION_SET)),
        HELD_OUT: (then.held_out, partial(_manifest_digest, HELD_OUT)),
        QUESTIONS: (then.questions, partial(_manifest_digest, QUESTIONS)),
        BASELINE: (then.reports.baseline, partial(json_digest, BASELINE)),
        EVALUATION: (then.reports.evaluation, partial(json_digest, EVALUATION)),
        LATENCY: (then.reports.latency, partial(json_digest, LATENCY)),
    }
    return [sentence for place in now if (sentence := _changed(place, *now[place]))]


def json_digest(path: Path) -> str:
    """Return the digest of a JSON file as it is stored."""
    return sha256_json(read_json(path))


def _manifest_digest(directory: Path) -> str:
    return str(read_json(directory / "manifest.json")["digest"])


def _changed(place: Path, then: str, digest: Callable[[], str]) -> str | None:
    try:
        if digest() == then:
            return None
    except DamagedArtifactError as error:
        return f"The report is stale: {error}."
    except (KeyError, TypeError):
        pass
    return f"The report is stale: {place} is not what it was made from; run `pruneflow run` again."
