"""Which flow run is at work on this workspace, so that a killed one does not stay Running."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from pruneflow.artifacts import read_json, write_json
from pruneflow.errors import DamagedArtifactError
from pruneflow.workspace import STATE

_CURRENT = STATE / "flow_run.json"


@contextmanager
def only_run() -> Iterator[None]:
    """Note the caller, who holds the workspace, and mark a run left behind as Crashed.

    A run that ends, however it fails, takes its note away; one that was killed cannot.
    """
    _close_what_was_killed()
    write_json(_CURRENT, {"id": str(flow_run.get_id())})
    try:
        yield
    finally:
        _CURRENT.unlink(missing_ok=True)


def _close_what_was_killed() -> None:
    try:
        killed = UUID(read_json(_CURRENT)["id"])
    except (DamagedArtifactError, KeyError, TypeError, ValueError):
        return
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(killed).state
            if state is not None and not state.is_final():
                said = Crashed(message="Its process was killed; a later run found it out.")
                client.set_flow_run_state(killed, said, force=True)
        except ObjectNotFound:
            pass  # of another Prefect server
