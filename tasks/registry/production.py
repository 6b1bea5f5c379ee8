"""Compare with the model in production, measured on the candidate's text and questions."""

from collections.abc import Iterator, Mapping
from typing import Any

from pruneflow.artifacts import read_json, write_json
from pruneflow.errors import DamagedArtifactError, InputError, PruneflowError
from pruneflow.judge.compare import check_comparable, compare
from pruneflow.judge.gates import Production
from pruneflow.measure.evaluation import measure_model
from pruneflow.paths import HELD_OUT, IN_PRODUCTION, QUESTIONS
from pruneflow.settings.pipeline import PipelineSettings
from tasks.registry import promotion, versions

EVALUATION_ARTIFACT = "reports/evaluation.json"
BETWEEN = (versions.PRODUCTION, "evaluation")


def compare_with_production(
    settings: PipelineSettings, candidate: Mapping[str, Any]
) -> Production | None:
    """Compare the candidate with the version that is in production.

    Its record is read from the run it was registered by. When text, questions or data type have
    changed since, the version is measured again and the record written to
    data/reports/production.json.

    Args:
        settings: the registry, and how to measure.
        candidate: record of the delivered model (data/reports/evaluation.json).

    Returns:
        None when nothing is in production. A version that cannot be measured or compared has a
        ``problem`` instead of a comparison; the candidate itself has neither.
    """
    promotion.undo_killed_move(settings.registry)
    version = versions.status(settings.registry)[versions.PRODUCTION]
    if version is None:
        return None
    number, digest = version["version"], version.get("model_digest", "")
    if digest == candidate["model"]["digest"]:
        return Production(number, digest, None)
    try:
        record = next(_known(settings, version, candidate), None) or _measure(settings, number)
        compared = compare(record, dict(candidate), settings.evaluation, BETWEEN)
    except PruneflowError as error:
        return Production(number, digest, None, str(error))
    return Production(number, digest, compared)


def _known(
    settings: PipelineSettings, version: Mapping[str, str], candidate: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the existing records of the version that can be compared."""
    for read in (
        lambda: read_json(IN_PRODUCTION),
        lambda: versions.read_artifact(settings.registry, version, EVALUATION_ARTIFACT),
    ):
        try:
            record = read()
            if record["model"]["digest"] == version.get("model_digest"):
                check_comparable(record, dict(candidate), BETWEEN)
                yield record
        except (DamagedArtifactError, InputError, KeyError, TypeError):
            continue


def _measure(settings: PipelineSettings, version: str) -> dict[str, Any]:
    with versions.checkpoint(settings.registry, version) as directory:
        record = measure_model(
            directory, HELD_OUT, QUESTIONS, settings.compute, f"version {version}, in production:"
        )
    write_json(IN_PRODUCTION, record)
    return record
