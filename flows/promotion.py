"""Promotion as a flow of its own, so that a deployment can do it."""

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from pruneflow.config import load_settings
from pruneflow.errors import PruneflowError
from pruneflow.workspace import check_workspace
from tasks import registry
from tasks.stages import failed


@flow(name="promotion")
def promotion(version: str | None = None) -> State:
    """Put a version into production; the candidate when none is named.

    Returns:
        A Completed state holding a `registry.Move`; or a Failed state with one line.
    """
    try:
        check_workspace()
        settings = load_settings().registry
        move = registry.promote(settings, version)
    except PruneflowError as error:
        return failed(error)
    sentence = move.sentence(settings.name)
    get_run_logger().info(sentence)
    return Completed(message=sentence, data=move)
