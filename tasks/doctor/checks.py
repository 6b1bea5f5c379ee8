"""Check whether this machine and this workspace can run the pipeline.

A check yields its findings; an error that it raises is a problem. To add a check, write it and
register it in CHECKS. Checks import what they need, so that a missing package is reported.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pruneflow.errors import InputError, PruneflowError, WorkspaceBusyError
from pruneflow.paths import DOMAINS_FILE, GATES_FILE, LM_EVAL, SOURCES_LOCK, SWEEP_FILE
from pruneflow.settings.pipeline import PIPELINE_FILE, load_settings
from pruneflow.workspace import check_writable, run_lock
from tasks.doctor.installed_versions import check_python, compare_packages
from tasks.tracking.git_state import git_state

Status = Literal["ok", "warning", "problem"]
OK: Status = "ok"
WARNING: Status = "warning"
PROBLEM: Status = "problem"
Result = tuple[Status, str]

_NVIDIA = Path("/proc/driver/nvidia/version")  # exists where the driver is loaded

# Packages whose versions are always shown.
SHOWN = ("torch", "transformers", "prefect", "mlflow", "dvc", "lm-eval", "great-expectations")


@dataclass(frozen=True)
class CheckResult:
    """The finding of one check.

    Attributes:
        check: its name.
        status: a ``problem`` must be fixed before a run, a ``warning`` need not.
        message: the state, and how to fix it.
    """

    check: str
    status: Status
    message: str


def diagnose() -> Iterator[CheckResult]:
    """Yield the findings of every check, in the order of CHECKS."""
    known: set[str] = set()
    for name, check in CHECKS.items():
        try:
            for status, message in check():
                yield CheckResult(name, status, message)
        except PruneflowError as error:
            if str(error) in known:
                yield CheckResult(name, WARNING, "not checked: fix the problem above first")
            else:
                known.add(str(error))
                yield CheckResult(name, PROBLEM, str(error))
        except Exception as error:  # noqa: BLE001 - the other checks may tell the cause
            detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            yield CheckResult(name, PROBLEM, f"this check failed ({detail})")


def _python() -> Iterator[Result]:
    yield OK, check_python()


def _packages() -> Iterator[Result]:
    found = compare_packages()
    for wrong in found.wrong:
        yield PROBLEM, f"{wrong}: run `make setup`"
    for other in found.unlocked:
        yield WARNING, f"{other}: run `make setup`"
    yield OK, ", ".join(f"{name} {found.installed.get(name, 'missing')}" for name in SHOWN)


def _folder() -> Iterator[Result]:
    check_writable(Path("data"))
    try:
        with run_lock():
            yield OK, f"{Path.cwd()} can be written, and no run is using it"
    except WorkspaceBusyError as error:
        yield WARNING, str(error)


def _settings() -> Iterator[Result]:
    settings = load_settings()
    final = settings.rounds[settings.final_round]
    yield OK, f"{PIPELINE_FILE}: {settings.model.name}, {len(settings.rounds)} rounds to {final}"


def _gates() -> Iterator[Result]:
    from pruneflow.judge.gates import load_gates

    gates = load_gates(GATES_FILE)
    yield OK, f"{GATES_FILE}: {len(gates.gates)} gates, {gates.run_mode}"


def _domains() -> Iterator[Result]:
    from pruneflow.data.sources import known_domains

    used = known_domains(load_settings().documents.domains, DOMAINS_FILE)
    yield OK, f"{DOMAINS_FILE}: {len(used)} domains in use"


def _sweep() -> Iterator[Result]:
    from pruneflow.sweep_recipes import load_recipes

    settings = load_settings()
    try:
        yield OK, f"{SWEEP_FILE}: {len(load_recipes(settings))} recipes"
    except InputError as error:
        yield WARNING, f"{error} (only `pruneflow sweep` needs it)"


def _model() -> Iterator[Result]:
    from pruneflow.models.source import check_source

    model = load_settings().model
    check_source(model)
    yield OK, model.source


def _sources() -> Iterator[Result]:
    """Compare the pinned sources, of questions and domains in use, with the installed ones."""
    from pruneflow.data.sources import compare_lock, known_domains

    used = known_domains(load_settings().documents.domains, DOMAINS_FILE)
    change = compare_lock(DOMAINS_FILE, SOURCES_LOCK, LM_EVAL)
    if python := [name for name in change.changed if name == "python"]:
        change.changed.remove(*python)
        yield (
            WARNING,
            f"{SOURCES_LOCK} was made with another Python, whose documentation may differ: "
            "`pruneflow data refresh` accepts this one's",
        )
    differ = [*change.added, *change.changed]
    if differ:
        yield (
            PROBLEM,
            f"{len(differ)} files differ from {SOURCES_LOCK} ({differ[0]} is the first): check "
            "what changed, then run `pruneflow data refresh`",
        )
    names = {getattr(source, "dataset", "") for group in used.values() for source in group}
    if missing := sorted(names & set(change.unresolved)):
        yield (
            PROBLEM,
            f"hub dataset {', '.join(missing)} is not pinned: run `pruneflow data refresh` with a "
            "network",
        )
    if not differ and not missing:
        yield OK, f"{SOURCES_LOCK} matches {DOMAINS_FILE} and the installed files"


def _stages() -> Iterator[Result]:
    from tasks.dvc.repro import stage_order

    yield OK, f"dvc.yaml: {len(stage_order())} stages"


def _remote() -> Iterator[Result]:
    """Check whether an accepted run can be pushed."""
    from tasks.dvc.remote import probe_remote

    problem, place = probe_remote()
    if problem is None:
        yield OK, f"DVC's remote {place} can be written"
    elif load_settings().registry.push:
        yield WARNING, f"{problem}; or set registry.push to false in {PIPELINE_FILE}"
    else:
        yield OK, f"not in use, registry.push is false ({problem})"


def _cache() -> Iterator[Result]:
    from tasks.dvc.status import check_cache

    yield OK, f"DVC's cache.type is {check_cache()}"


def _store() -> Iterator[Result]:
    from tasks.tracking.location import has_store, is_server
    from tasks.tracking.store import connect, find_experiment, store_errors

    settings = load_settings().registry
    store = f"MLflow's store {settings.tracking_uri}"
    if not has_store(settings):
        yield OK, f"{store} is made by the first run"
        return
    find_experiment(connect(settings), settings)  # refuses tables of another MLflow version
    if is_server(settings):
        yield OK, f"{store} answers"
        return
    import mlflow
    from sqlalchemy import create_engine, text

    with store_errors(settings), create_engine(mlflow.get_tracking_uri()).connect() as tables:
        schema = tables.execute(text("SELECT version_num FROM alembic_version")).scalar()
    yield OK, f"{store} answers, schema {schema}"


def _prefect() -> Iterator[Result]:
    from prefect.settings import get_current_settings

    from tasks.registry.lock import check_server

    url = get_current_settings().api.url
    check_server()
    if url is None:
        yield OK, "PREFECT_API_URL is not set: each run starts its own Prefect server"
    else:
        yield OK, f"the Prefect server at {url} answers"


def _schedules() -> Iterator[Result]:
    from tasks.prefect.schedules import PREFECT_FILE, check_crons

    yield OK, f"{PREFECT_FILE}: {check_crons()} schedules"


def _processor() -> Iterator[Result]:
    import torch

    from pruneflow.models.loading import resolve_device, supports_bfloat16

    compute = load_settings().compute
    device = resolve_device(compute)
    native = supports_bfloat16(device)
    what = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores"
    yield OK, f"{what}, {'computes' if native else 'does not compute'} in bfloat16"
    if compute.dtype == "bfloat16" and not native:
        yield (
            WARNING,
            "compute.dtype is bfloat16, which is ten times slower than float32 here: set it to "
            "auto",
        )
    if _NVIDIA.exists() and not torch.cuda.is_available():
        yield (
            WARNING,
            f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU: docs/how-to/"
            "gpu.md names the torch to install",
        )
    if device == "cpu" and torch.cuda.is_available():
        yield WARNING, "there is a GPU, but compute.device is cpu: set it to auto"


def _memory() -> Iterator[Result]:
    import psutil
    import torch

    from pruneflow.footprint import footprint
    from pruneflow.models.loading import resolve_device, supports_bfloat16

    settings = load_settings()
    device = resolve_device(settings.compute)
    native = settings.compute.dtype == "auto" and supports_bfloat16(device)
    dtype = "bfloat16" if native or settings.compute.dtype == "bfloat16" else "float32"
    needed = footprint(settings, dtype)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    kind = "GPU memory" if device == "cuda" else "memory"
    if needed is None:
        yield OK, f"{_gigabytes(free)} of {kind} free; the model's size is known after its download"
        return
    message = f"{_gigabytes(free)} of {kind} free, a run needs about {_gigabytes(needed.memory)}"
    if free >= needed.memory:
        yield OK, message
    elif device == "cpu":
        yield WARNING, f"{message}: end other programs, or lower compute.batch_tokens"
    elif settings.compute.placement == "whole":
        yield WARNING, f"{message}: end other programs, or set compute.placement to auto"
    else:
        yield (
            OK,
            f"{message} on one device: models are spread or streamed (docs/how-to/gpu.md)",
        )


def _disk() -> Iterator[Result]:
    from pruneflow.footprint import check_temporary_folder, footprint, present

    check_temporary_folder(load_settings())
    needed = footprint(load_settings(), "float32")
    free = shutil.disk_usage(Path.cwd()).free
    if needed is None:
        yield OK, f"{_gigabytes(free)} free; the model's size is known after its download"
        return
    room = free + present()
    message = (
        f"{_gigabytes(free)} free, a run from the beginning takes {_gigabytes(needed.disk_least)} "
        f"to {_gigabytes(needed.disk_most)}"
    )
    if room < needed.disk_least:
        yield PROBLEM, f"{message}: free some, `pruneflow gc` shows what is not needed"
    elif room < needed.disk_most:
        yield WARNING, f"{message}: free some, `pruneflow gc` shows what is not needed"
    else:
        yield OK, message


def _git() -> Iterator[Result]:
    commit, changed = git_state()
    if commit == "unknown":
        yield (
            WARNING,
            "no commit: versions will not record their code; run `git init` and commit",
        )
    elif changed == "true":
        yield (
            WARNING,
            f"commit {commit[:12]} with changes: commit them, or only the run itself can promote "
            "its model",
        )
    else:
        yield OK, f"commit {commit[:12]}, nothing changed"


CHECKS: dict[str, Callable[[], Iterator[Result]]] = {
    "python": _python,
    "packages": _packages,
    "folder": _folder,
    "settings": _settings,
    "gates": _gates,
    "domains": _domains,
    "sweep": _sweep,
    "model": _model,
    "sources": _sources,
    "stages": _stages,
    "cache": _cache,
    "remote": _remote,
    "mlflow": _store,
    "prefect": _prefect,
    "schedules": _schedules,
    "processor": _processor,
    "memory": _memory,
    "disk": _disk,
    "git": _git,
}


def _gigabytes(size: int) -> str:
    return f"{size / 10**9:.1f} GB"
