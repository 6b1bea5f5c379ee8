"""Find and remove what no alias, dvc.lock or run needs any more.

The workspace and the registry are locked meanwhile, so that no run and no promotion interferes.
Nothing that stays depends on what is removed; if gc is killed, the next one removes the rest.
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
    """What can be removed, in order of removal, and notes on what was skipped."""

    found: list[Removable]
    notes: list[str]


@contextmanager
def survey(settings: PipelineSettings, keep_versions: int = 0) -> Iterator[Survey]:
    """Lock the workspace and the registry and survey them; until the block ends, removing is safe.

    `keep_versions` of the newest versions without an alias stay.

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
                notes.append(f"{error}: nothing is removed from it")
            yield Survey(found, notes)


def remove(items: Iterable[Removable]) -> None:
    """Remove what a survey found, inside its block.

    Raises:
        InputError: an item cannot be removed; those before it are.
    """
    for item in items:
        try:
            item.remove()
        except OSError as error:
            raise InputError(
                f"{item.name} cannot be removed ({error.strerror}): make it writable, and run "
                "`pruneflow gc` again"
            ) from None


def _rounds(known: set[Path]) -> Iterator[Removable]:
    """Yield folders of an earlier, longer plan: no stage reads or writes in them."""
    for folder in sorted(CHECKPOINTS.glob("[!.]*")):
        place = folder.absolute()
        if folder.is_symlink() or not folder.is_dir():
            continue
        if not any(path.is_relative_to(place) or place.is_relative_to(path) for path in known):
            yield Removable.of_folder("round", folder)


def _leftovers(outs: set[Path]) -> Iterator[Removable]:
    """Yield temporary files of killed processes."""
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
    """Yield recovery checkpoints that a run with the current settings and data does not resume."""
    if RECOVERY_DONE.exists():
        yield Removable.of_path("leftover", RECOVERY_DONE)
    try:
        current = recovery_checkpoint(settings)
    except DamagedArtifactError:
        return  # a round is missing: which checkpoint its recovery resumes is not known yet
    needed = {current} if current is not None else set()
    places = set(RECOVERY.iterdir()) if RECOVERY.is_dir() else set()
    if current is not None and current not in places:
        needed.add(current.with_name(f".{current.name}.old"))  # `repair` puts it back
    for path in sorted(places - needed):
        yield Removable.of_path("leftover", path)
