"""Prefect's worker of this workspace, which `make services` starts next to the server.

It waits for the server, creates the work pool, deploys prefect.yaml, and then executes
`prefect worker start`.
"""

import os
import subprocess
import sys
import time

from pruneflow.errors import InputError, PruneflowError, report
from pruneflow.process_environment import complete_environment
from tasks.prefect.schedules import active_schedules, check_crons, restore_active
from tasks.registry.lock import check_server

POOL = "pruneflow"
WAIT_SECONDS = 120.0


def main() -> None:
    """Wait, deploy, and start the worker.

    Raises:
        InputError: a cron is not valid, no server answers, or it refuses a deployment.
    """
    complete_environment()
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise InputError("PREFECT_API_URL is not set: start services with `make services`")
    check_crons()
    _wait_for_server()
    before = active_schedules()
    for step in (
        ["work-pool", "create", POOL, "--type", "process", "--overwrite"],
        ["deploy", "--all"],
    ):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *step]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise InputError(
                f"`prefect {' '.join(step)}` failed ({lines[-1] if lines else 'no reason given'}): "
                "fix prefect.yaml"
            )
    restore_active(before)
    print(f"deployed prefect.yaml to {url.removesuffix('/api')}", flush=True)
    worker = ["-m", "prefect", "worker", "start", "--pool", POOL]
    os.execv(sys.executable, [sys.executable, *worker])


def _wait_for_server() -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return check_server()
        except InputError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


if __name__ == "__main__":
    try:
        main()
    except PruneflowError as error:
        sys.exit(report(error))
