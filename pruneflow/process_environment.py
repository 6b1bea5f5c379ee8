"""What the processes of the pipeline read from their environment, before torch is imported."""

import getpass
import io
import os
import sys

NO_PROXY = ("NO_PROXY", "no_proxy")  # libraries read one or the other
LOOPBACK = ("127.0.0.1", "localhost", "::1")
REDIRECTIONS = {
    "MLFLOW_RUN_ID": "results are always a new run",
    "MLFLOW_EXPERIMENT_ID": "registry.experiment names the experiment",
    "MLFLOW_EXPERIMENT_NAME": "registry.experiment names the experiment",
    "GIT_DIR": "the workspace's own repository is used",
    "GIT_WORK_TREE": "the workspace's own repository is used",
    "GIT_INDEX_FILE": "the workspace's own repository is used",
}
"""Variables that would lead results elsewhere and are ignored, and what decides instead."""
OPENMP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def complete_environment() -> dict[str, str]:
    """Complete the environment of this process and its children; what the user has set stays.

    * Variables that would lead results elsewhere (`REDIRECTIONS`) are removed.
    * OpenMP's threads sleep while they wait. By default they spin, which slows a machine that does
      something else several times (benchmarks/results/busy_machine.json).
    * Servers on this machine are not reached through a proxy.
    * A user without an entry in /etc/passwd, as in many containers, has a name.
    * Characters that the terminal's encoding lacks are written as escapes, as Python does on
      stderr.

    Returns:
        The variables that were removed, with what decides instead.
    """
    removed = {name: why for name, why in REDIRECTIONS.items() if os.environ.pop(name, None)}
    if not OPENMP.keys() & os.environ.keys():
        os.environ.update(OPENMP)
    given = ",".join(os.environ.get(name, "") for name in NO_PROXY)
    hosts = dict.fromkeys([*filter(None, given.split(",")), *LOOPBACK])
    os.environ.update(dict.fromkeys(NO_PROXY, ",".join(hosts)))
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid-{os.getuid()}"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return removed
