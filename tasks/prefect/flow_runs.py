"""Mark a flow run of this workspace that was killed as Crashed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import Flow, FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from pruneflow.artifacts import read_json, write_json
from pruneflow.errors import DamagedArtifactError
from pruneflow.workspace import FLOW_RUN

# Called with the flow, the run that was killed, and its new state.
OnKilled = Callable[[Flow, FlowRun, State], None]


@contextmanager
def only_run(on_killed: OnKilled) -> Iterator[None]:
    """Record the calling run, which holds the workspace, and mark a killed one as Crashed.

    A run removes its record however it ends. A record that is still there belongs to a run that was
    killed before its hooks ran: unless a worker noticed, `on_killed` is called.
    """
    _mark_killed(on_killed)
    write_json(FLOW_RUN, {"id": str(flow_run.get_id())})
    try:
        yield
    finally:
        FLOW_RUN.unlink(missing_ok=True)


def _mark_killed(on_killed: OnKilled) -> None:
    try:
        killed = UUID(read_json(FLOW_RUN)["id"])
    except (DamagedArtifactError, KeyError, TypeError, ValueError):
        return
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(killed)
            if run.state is None or run.state.is_final():
                return
            state: State[Any] = Crashed(message="its process was killed; a later run noticed it")
            client.set_flow_run_state(killed, state, force=True)
            on_killed(client.read_flow(run.flow_id), run, state)
        except ObjectNotFound:
            pass  # of another Prefect server
