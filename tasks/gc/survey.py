"""Find what no alias, lock or run needs any more, and remove it.

It holds the workspace and the registry, so that no run and no promotion happens at the same time.
Everything it removes is independent of what stays; if it is killed, the next gc finds the rest.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pruneflow.artifacts import leftovers
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.paths import (
    CHECKPOINTS,
    DECISION,
    IN_PRODUCTION,
    RECOVERY,
    RECOVERY_DONE,
    SOURCES_LOCK,
)
from pruneflow.recovery_stage import recovery_checkpoint
from pruneflow.settings.pipeline import PIPELINE_FILE, PipelineSettings
from pruneflow.workspace import STATE, run_lock, wait_for_leftover_stage
from tasks.gc.dvc_cache import CacheUncertainError, known_paths, repository, unused_entries
from tasks.gc.registry_models import unreferenced
from tasks.gc.removable import Removable
from tasks.registry import promotion


@dataclass(frozen=True)
class Survey:
    """What can be removed, in this order, and notes on what was skipped."""

    found: list[Removable]
    notes: list[str]


@contextmanager
def survey(settings: PipelineSettings, keep_versions: int = 0) -> Iterator[Survey]:
    """Hold workspace and registry and survey them; removing is safe until the block ends.

    Args:
        settings: the pipeline's.
        keep_versions: number of versions without an alias to keep, the newest.

    Raises:
        WorkspaceBusyError: a run or a stage is running.
        InputError: dvc.yaml or MLflow's store cannot be read.
    """
    with run_lock(), promotion.held(settings.registry):
        wait_for_leftover_stage()
        with repository() as repo:
            outs, deps = known_paths(repo)
            found = [
                *unreferenced(settings.registry, keep_versions),
                *_rounds(outs | deps),
                *_leftovers(outs),
                *_recoveries(settings),
            ]
            notes = []
            try:
                found += unused_entries(repo)
            except CacheUncertainError as error:
                notes.append(f"{error}: nothing of it is removed")
            yield Survey(found, notes)


def remove(things: Iterable[Removable]) -> None:
    """Remove what a survey found, while it holds.

    Raises:
        InputError: something cannot be removed; everything before it is.
    """
    for thing in things:
        try:
            thing.remove()
        except OSError as error:
            raise InputError(
                f"{thing.name} cannot be removed ({error.strerror}): make it writable, and run "
                "`pruneflow gc` again"
            ) from None


def _rounds(known: set[Path]) -> Iterator[Removable]:
    """Folders of a longer plan: no stage writes or reads them, nor anything in or above them."""
    for folder in sorted(CHECKPOINTS.glob("[!.]*")):
        place = folder.absolute()
        if folder.is_symlink() or not folder.is_dir():
            continue
        if not any(path.is_relative_to(place) or place.is_relative_to(path) for path in known):
            yield Removable.of_folder("round", folder)


def _leftovers(outs: set[Path]) -> Iterator[Removable]:
    """Temporary files of killed processes."""
    here = Path.cwd()
    written = {out.relative_to(here) for out in outs if out.is_relative_to(here)}
    written |= {DECISION, IN_PRODUCTION, PIPELINE_FILE, SOURCES_LOCK}
    found = {path for out in written for path in leftovers(out)}
    planned = {out.name for out in written if out.parent == CHECKPOINTS}
    for path in (*CHECKPOINTS.glob(".*.new"), *CHECKPOINTS.glob(".*.old")):
        if path.name[1:].rpartition(".")[0] not in planned:
            found.add(path)
    for path in sorted({*found, *STATE.glob(".*.new")}):
        yield Removable.of_path("leftover", path)


def _recoveries(settings: PipelineSettings) -> Iterator[Removable]:
    """Recovery checkpoints that a run of the current settings, rounds and text does not resume."""
    if RECOVERY_DONE.exists():
        yield Removable.of_path("leftover", RECOVERY_DONE)
    try:
        current = recovery_checkpoint(settings)
    except DamagedArtifactError:
        return  # a round is missing: which of these its recovery resumes is not known yet
    needed = {current} if current is not None else set()
    places = set(RECOVERY.iterdir()) if RECOVERY.is_dir() else set()
    if current is not None and current not in places:
        needed.add(current.with_name(f".{current.name}.old"))  # `repair` puts it back
    for path in sorted(places - needed):
        yield Removable.of_path("leftover", path)
