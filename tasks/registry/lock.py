"""The registry's locks: a file on one host, a concurrency limit of Prefect across hosts."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from httpx import TransportError
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, PrefectHTTPStatusError
from prefect.settings import get_current_settings

from pruneflow.errors import InputError, WorkspaceBusyError
from pruneflow.settings.pipeline import RegistrySettings
from pruneflow.workspace import registry_lock
from tasks.tracking.location import store_file

REGISTRY_LIMIT = "pruneflow-registry"
WAIT_SECONDS = 600.0
LEASE_SECONDS = 60.0  # Prefect's minimum


@contextmanager
def registry_held(settings: RegistrySettings) -> Iterator[None]:
    """Lock the registry, so that no other process registers versions or moves aliases.

    All users of an SQLite store share a lock file next to it. Workspaces that share a Prefect
    server (PREFECT_API_URL) also share its global concurrency limit `pruneflow-registry`, created
    on first use. Its lease expires soon after its holder is killed.

    Raises:
        WorkspaceBusyError: another process holds the lock for longer than WAIT_SECONDS.
        InputError: no Prefect server answers at PREFECT_API_URL, or it refuses the request.
    """
    url = get_current_settings().api.url
    with registry_lock(store_file(settings), WAIT_SECONDS), ExitStack() as stack:
        if url is not None:
            _take_turn(str(url), stack)
        yield


def check_server() -> None:
    """Check that the Prefect server at PREFECT_API_URL, if set, is up and accepts our login.

    Raises:
        InputError: it is not up, or refuses; or it is not set and a temporary one is not allowed.
    """
    prefect = get_current_settings()
    url = prefect.api.url
    if url is None and not prefect.server.ephemeral.enabled:
        raise InputError(
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE is false and PREFECT_API_URL is not set: unset "
            "the first, or start a server with `make services` and set the second"
        )
    if url is not None:
        with _server_errors(str(url)), get_client(sync_client=True) as client:
            client.read_global_concurrency_limits(limit=1)  # changes nothing, and needs a login


def _take_turn(url: str, stack: ExitStack) -> None:
    # When a process ends, it logs how many events about this limit are still pending.
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)
    turn = concurrency(
        REGISTRY_LIMIT, strict=True, timeout_seconds=WAIT_SECONDS, lease_duration=LEASE_SECONDS
    )
    try:
        with _server_errors(url):
            with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
                # It exists already if another workspace created it at the same time.
                client.upsert_global_concurrency_limit_by_name(REGISTRY_LIMIT, limit=1)
            stack.enter_context(turn)
    except TimeoutError:
        raise WorkspaceBusyError(
            f"another workspace is using the registry (global concurrency limit "
            f"{REGISTRY_LIMIT} of {url}): wait for it"
        ) from None


@contextmanager
def _server_errors(url: str) -> Iterator[None]:
    try:
        yield
    except PrefectHTTPStatusError as error:
        raise InputError(
            f"the Prefect server at PREFECT_API_URL ({url}) refuses with status "
            f"{error.response.status_code}: check PREFECT_API_AUTH_STRING"
        ) from None
    except (TransportError, RuntimeError) as error:
        raise InputError(
            f"no Prefect server answers at PREFECT_API_URL ({url}, {type(error).__name__}): start "
            "it with `make services`, or unset PREFECT_API_URL"
        ) from None
