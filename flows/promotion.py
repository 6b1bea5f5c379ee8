"""Promotion and rollback as flows, so that they can be deployments."""

from collections.abc import Callable

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.run_notification import HOOKS
from pruneflow.errors import PruneflowError
from pruneflow.settings.pipeline import RegistrySettings, load_settings
from pruneflow.workspace import check_workspace
from tasks.dvc.repro import failed
from tasks.registry.promotion import Approval, Move, promote, rollback


@flow(name="promotion", **HOOKS)
def promotion(
    version: int | str | None = None, approved_by: str | None = None, because: str | None = None
) -> State:
    """Put a version into production, by default the candidate.

    Args:
        version: its number; `prefect deployment run -p version=3` passes an integer.
        approved_by: who approves; needed where ``registry.promotion`` is manual.
        because: the reason, for the model's history.

    Returns:
        A Completed state holding a `Move`; or a Failed state with one line.
    """
    number = None if version is None else str(version)
    return _move(lambda settings: promote(settings, number, Approval(approved_by, because)))


@flow(name="rollback", **HOOKS)
def roll_back(approved_by: str | None = None, because: str | None = None) -> State:
    """Put the previous version back into production.

    Returns:
        A Completed state holding a `Move`; or a Failed state with one line.
    """
    return _move(lambda settings: rollback(settings, Approval(approved_by, because)))


def _move(action: Callable[[RegistrySettings], Move]) -> State:
    try:
        check_workspace()
        settings = load_settings().registry
        move = action(settings)
    except PruneflowError as error:
        return failed(error)
    sentence = move.sentence(settings.name)
    get_run_logger().info(sentence)
    return Completed(message=sentence, data=move)
