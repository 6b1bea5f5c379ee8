"""A workspace for each recipe of a sweep: `.pruneflow/sweep/NAME`.

It has its own configs/pipeline.yaml, dvc.lock, outputs and locks. Everything else links to the
project folder. All workspaces use the project's DVC cache: results that a recipe shares with the
last run, another recipe or an earlier sweep come from DVC's run cache.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
from dvc.dependency.param import ParamsDependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import Stage

from pruneflow.artifacts import sha256_json, staged_file
from pruneflow.errors import InputError
from pruneflow.paths import DVC_LOCK, SWEEP
from pruneflow.settings.pipeline import PIPELINE_FILE, PipelineSettings, write_settings

TIMED = "latency"
"""The stage that measures speed: it and the stages that depend on it run one recipe at a time."""

_CONFIG = """[core]
    analytics = false
    no_scm = true
[cache]
    dir = {folder}
    type = "{types}"
"""


@dataclass(frozen=True)
class RecipeWorkspace:
    """The workspace of a recipe.

    Attributes:
        name: the recipe's name.
        folder: its workspace.
        untimed: fingerprints of the stages that may run in parallel with other recipes, by stage,
            in topological order. Stages with the same fingerprint have the same outs.
    """

    name: str
    folder: Path
    untimed: dict[str, str]


def prepare(recipes: Mapping[str, PipelineSettings]) -> list[RecipeWorkspace]:
    """Create or update the workspaces of recipes; existing outputs are kept.

    Raises:
        InputError: dvc.yaml cannot be used, or model.source is a relative path that leaves the
            project folder.
    """
    try:
        with Repo() as project:
            config = _CONFIG.format(
                folder=project.cache.local_cache_dir,
                types=",".join(project.cache.local.cache_types),
            )
        return [_prepare(name, settings, config) for name, settings in recipes.items()]
    except DvcException as error:
        raise InputError(f"dvc.yaml cannot be used: {' '.join(str(error).split())}") from None


def to_share(workspaces: Sequence[RecipeWorkspace]) -> dict[str, list[str]]:
    """Return the stages that several recipes share, by the recipe that runs them for all."""
    times = Counter(fingerprint for each in workspaces for fingerprint in each.untimed.values())
    shared = {fingerprint for fingerprint, count in times.items() if count > 1}
    chosen: dict[str, list[str]] = {}
    for each in workspaces:
        names = [name for name, fingerprint in each.untimed.items() if fingerprint in shared]
        if names:
            chosen[each.name] = names
        shared -= set(each.untimed.values())
    return chosen


def _prepare(name: str, settings: PipelineSettings, config: str) -> RecipeWorkspace:
    folder = SWEEP / name
    _write(folder / ".dvc/config", config)
    write_settings(settings, folder / PIPELINE_FILE)
    _link(Path("dvc.yaml"), folder)
    if DVC_LOCK.is_file() and not (folder / DVC_LOCK).exists():
        # `dvc pull` fetches the outputs that it names, but no run cache.
        _write(folder / DVC_LOCK, DVC_LOCK.read_text(encoding="utf-8"))
    with Repo(str(folder)) as repo:
        _link_inputs(repo, folder, settings.model.source)
        return RecipeWorkspace(name, folder, _untimed(repo))


def _write(path: Path, text: str) -> None:
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _link_inputs(repo: Repo, folder: Path, model: str) -> None:
    """Link what the stages read and do not write, and the code that they run."""
    root = Path(repo.root_dir)
    written = {_relative(out.fs_path, root) for out in repo.index.outs}
    read = {_relative(dep.fs_path, root) for dep in repo.index.deps} - {PIPELINE_FILE}
    source = Path(model)
    if source.exists() and not source.is_absolute():
        if ".." in source.parts:
            raise InputError(
                f"model.source is {model}, but each recipe runs in its own folder: use an "
                "absolute path"
            )
        read.add(source)
    # Folders in which a recipe has its own files; all others are linked as a whole.
    own = {path.parts[0] for path in (*written, PIPELINE_FILE, DVC_LOCK)}
    top = {Path(path.name) for path in Path().iterdir() if path.name not in own}
    links = {path for path in top if path.name == ".dvcignore" or path.name[0] != "."}
    links |= {
        path
        for path in read
        if path.parts[0] in own and path.exists() and not {path, *path.parents} & written
    }
    links = {path for path in links if not set(path.parents) & links}
    for place in {folder, *((folder / path).parent for path in links)}:
        place.mkdir(parents=True, exist_ok=True)
        for entry in place.iterdir():
            if entry.is_symlink() and entry.relative_to(folder) not in links | written:
                entry.unlink()  # no longer in the project, or no longer read
    for path in links:
        _link(path, folder)


def _link(path: Path, folder: Path) -> None:
    link, target = folder / path, path.absolute()
    if link.is_symlink() and link.readlink() == target:
        return
    try:
        link.symlink_to(target)
    except FileExistsError:
        raise InputError(f"{link} exists and is not a link to {path}: delete {folder}") from None


def _relative(path: str, root: Path) -> Path:
    return Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path)


def _untimed(repo: Repo) -> dict[str, str]:
    """Return a fingerprint of the inputs of each stage that does not depend on the timed one."""
    graph = repo.index.graph  # its edges point from a stage to its dependencies
    untimed: dict[str, str] = {}
    for stage in reversed(list(networkx.topological_sort(graph))):
        before = [each.name for each in graph.successors(stage)]
        if stage.name != TIMED and all(name in untimed for name in before):
            inputs = [_own_part(stage), sorted(untimed[name] for name in before)]
            untimed[stage.name] = sha256_json(inputs)
    return untimed


def _own_part(stage: Stage) -> list[Any]:
    params = [dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)]
    paths = [[each.def_path for each in each_kind] for each_kind in (stage.deps, stage.outs)]
    return [stage.cmd, params, *paths]
