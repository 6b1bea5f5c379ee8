"""Compare a candidate with the model in production, on the candidate's text and questions."""

from pruneflow.errors import InputError, PruneflowError
from pruneflow.judge.compare import Names, check_comparable, compare
from pruneflow.judge.gates import Production
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.paths import HELD_OUT, IN_PRODUCTION, QUESTIONS
from pruneflow.records import find_record, write_record
from pruneflow.settings.pipeline import PipelineSettings
from tasks.registry import promotion, versions

EVALUATION_ARTIFACT = "reports/evaluation.json"
NAMES = Names(versions.PRODUCTION, "evaluation")


def compare_with_production(settings: PipelineSettings, candidate: Evaluation) -> Production | None:
    """Compare the candidate with the version that is in production.

    The version's evaluation is read from the run that registered it. If text, questions or data
    type have changed since, the version is evaluated again and the result is kept in
    data/reports/production.json.

    Returns:
        None if nothing is in production. A version that cannot be evaluated or compared has a
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
        found = _known(version, candidate) or _measure(settings, number)
        compared = compare(found, candidate, settings.evaluation, NAMES)
    except PruneflowError as error:
        return Production(number, digest, None, str(error))
    return Production(number, digest, compared)


def _known(version: versions.Version, candidate: Evaluation) -> Evaluation | None:
    """Return an evaluation of the version that can be compared with the candidate's."""
    for found in (
        find_record(Evaluation, IN_PRODUCTION),
        versions.find_record(Evaluation, version, EVALUATION_ARTIFACT),
    ):
        if found is None or found.model.digest != version.get("model_digest"):
            continue
        try:
            check_comparable(found, candidate, NAMES)
        except InputError:
            continue
        return found
    return None


def _measure(settings: PipelineSettings, version: str) -> Evaluation:
    # Only this needs torch and lm-eval, whose imports take seconds.
    from pruneflow.measure.evaluation import measure_model

    with versions.checkpoint(settings.registry, version) as directory:
        found = measure_model(
            directory, HELD_OUT, QUESTIONS, settings.compute, f"version {version}, in production:"
        )
    write_record(IN_PRODUCTION, found)
    return found
