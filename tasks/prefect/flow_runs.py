"""Which flow run is at work on this workspace, so that a killed one does not stay Running."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from pruneflow.artifacts import read_json, write_json
from pruneflow.errors import DamagedArtifactError
from pruneflow.workspace import FLOW_RUN

# Called with the name of its flow, a run that was killed, and its new state.
Told = Callable[[str, FlowRun, State], None]


@contextmanager
def only_run(told: Told) -> Iterator[None]:
    """Note the caller, who holds the workspace, and mark a run left behind as Crashed.

    A run that ends, however it fails, takes its note away; one that was killed cannot, and tells
    nobody: when no worker has seen it end, `told` is called here.
    """
    _close_what_was_killed(told)
    write_json(FLOW_RUN, {"id": str(flow_run.get_id())})
    try:
        yield
    finally:
        FLOW_RUN.unlink(missing_ok=True)


def _close_what_was_killed(told: Told) -> None:
    try:
        killed = UUID(read_json(FLOW_RUN)["id"])
    except (DamagedArtifactError, KeyError, TypeError, ValueError):
        return
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(killed)
            if run.state is None or run.state.is_final():
                return
            said = Crashed(message="its process was killed; a later run found it out")
            client.set_flow_run_state(killed, said, force=True)
            told(client.read_flow(run.flow_id).name, run, said)
        except ObjectNotFound:
            pass  # of another Prefect server
