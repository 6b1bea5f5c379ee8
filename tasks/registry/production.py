"""Compare with the model in production, measured on the candidate's text and questions."""

from collections.abc import Iterator, Mapping

from pruneflow.errors import DamagedArtifactError, InputError, PruneflowError
from pruneflow.judge.compare import Names, check_comparable, compare
from pruneflow.judge.gates import Production
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.paths import HELD_OUT, IN_PRODUCTION, QUESTIONS
from pruneflow.records import parse_record, read_record, write_record
from pruneflow.settings.pipeline import PipelineSettings
from tasks.registry import promotion, versions

EVALUATION_ARTIFACT = "reports/evaluation.json"
NAMES = Names(versions.PRODUCTION, "evaluation")


def compare_with_production(settings: PipelineSettings, candidate: Evaluation) -> Production | None:
    """Compare the candidate with the version that is in production.

    Its evaluation is read from the run that registered it. When text, questions or data type have
    changed since, the version is measured again, and the evaluation kept in
    data/reports/production.json.

    Args:
        settings: the registry, and how to measure.
        candidate: evaluation of the delivered model (data/reports/evaluation.json).

    Returns:
        None when nothing is in production. A version that cannot be measured or compared has a
        ``problem`` instead of a comparison; the candidate itself has neither.
    """
    promotion.undo_killed_move(settings.registry)
    version = versions.status(settings.registry)[versions.PRODUCTION]
    if version is None:
        return None
    number, digest = version["version"], version.get("model_digest", "")
    if digest == candidate.model.digest:
        return Production(number, digest, None)
    try:
        found = next(_known(settings, version, candidate), None) or _measure(settings, number)
        compared = compare(found, candidate, settings.evaluation, NAMES)
    except PruneflowError as error:
        return Production(number, digest, None, str(error))
    return Production(number, digest, compared)


def _known(
    settings: PipelineSettings, version: Mapping[str, str], candidate: Evaluation
) -> Iterator[Evaluation]:
    """Yield the version's evaluations that can be compared with the candidate's."""
    for read in (
        lambda: read_record(Evaluation, IN_PRODUCTION),
        lambda: parse_record(
            Evaluation,
            versions.read_artifact(settings.registry, version, EVALUATION_ARTIFACT),
            EVALUATION_ARTIFACT,
        ),
    ):
        try:
            found = read()
            if found.model.digest == version.get("model_digest"):
                check_comparable(found, candidate, NAMES)
                yield found
        except (DamagedArtifactError, InputError):
            continue


def _measure(settings: PipelineSettings, version: str) -> Evaluation:
    # Only here does a run need torch and lm-eval, whose imports take seconds.
    from pruneflow.measure.evaluation import measure_model

    with versions.checkpoint(settings.registry, version) as directory:
        found = measure_model(
            directory, HELD_OUT, QUESTIONS, settings.compute, f"version {version}, in production:"
        )
    write_record(IN_PRODUCTION, found)
    return found
