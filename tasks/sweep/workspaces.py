"""A workspace for each recipe of a sweep: `.pruneflow/sweep/NAME`.

It has its own configs/pipeline.yaml, outputs and locks; what stages only read are links into the
project folder, and DVC's cache is the project's. So what a recipe has in common with the last run
or with another recipe is checked out instead of made again, by two rules of DVC's:

- A stage whose inputs are those in dvc.lock is checked out where its outs are missing. The
  project's dvc.lock is therefore what a recipe starts from.
- Any other stage is looked up in DVC's run cache.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
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
from pruneflow.workspace import STATE

DVC_FILE = Path("dvc.yaml")
TIMED = "latency"
"""The stage that needs the machine for itself; it and what follows it are run one by one."""

_CONFIG = """[core]
    analytics = false
    no_scm = true
[cache]
    dir = {folder}
    type = "{types}"
"""


@dataclass(frozen=True)
class RecipeWorkspace:
    """Where a recipe is run.

    Attributes:
        name: of the recipe.
        folder: its workspace.
        untimed: the stages that may run beside others, in their order, and for each what it is
            made of: equal values give equal outs.
    """

    name: str
    folder: Path
    untimed: dict[str, str]


def prepare(recipes: Mapping[str, PipelineSettings]) -> list[RecipeWorkspace]:
    """Make or renew the workspaces of recipes; what was made in them stays.

    Raises:
        InputError: dvc.yaml cannot be used, or the model is at a relative path outside.
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


def to_share(workspaces: Iterable[RecipeWorkspace]) -> dict[str, list[str]]:
    """Return by recipe the stages that it is to make before all others start: theirs, too."""
    workspaces = list(workspaces)
    wanted = Counter(made_of for each in workspaces for made_of in each.untimed.values())
    shared = {made_of for made_of, times in wanted.items() if times > 1}
    chosen: dict[str, list[str]] = {}
    for each in workspaces:
        names = [name for name, made_of in each.untimed.items() if made_of in shared]
        if names:
            chosen[each.name] = names
        shared -= set(each.untimed.values())
    return chosen


def _prepare(name: str, settings: PipelineSettings, config: str) -> RecipeWorkspace:

    folder = SWEEP / name
    _write(folder / ".dvc/config", config)
    _write(folder / DVC_FILE, DVC_FILE.read_text(encoding="utf-8"))
    write_settings(settings, folder / PIPELINE_FILE)
    _start_from_last_run(folder)
    with Repo(str(folder)) as repo:
        _link_inputs(repo, folder, settings.model.source)
        return RecipeWorkspace(name, folder, _untimed(repo))


def _write(path: Path, text: str) -> None:
    """Write what is not there yet: DVC reads anew what has a new date."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _start_from_last_run(folder: Path) -> None:
    """Copy the project's dvc.lock, once for each state of it.

    What the recipe's own dvc.lock said is in the run cache.
    """
    if not DVC_LOCK.is_file():
        return
    text, seen = DVC_LOCK.read_text(encoding="utf-8"), folder / STATE / "last_run.lock"
    if not seen.is_file() or seen.read_text(encoding="utf-8") != text:
        _write(folder / DVC_LOCK, text)
        _write(seen, text)


def _link_inputs(repo: Repo, folder: Path, model: str) -> None:
    """Link what the stages read and none of them makes, and the code that they run."""
    root = Path(repo.root_dir)
    made = {_relative(out.fs_path, root) for out in repo.index.outs}
    read = {_relative(dep.fs_path, root) for dep in repo.index.deps}
    source = Path(model)
    if source.exists() and not source.is_absolute():
        if ".." in source.parts:
            raise InputError(
                f"model.source is {model}, and recipes run in folders of their own: write it as "
                "an absolute path"
            )
        read.add(source)
    # In these the recipe has files of its own; all others are linked whole.
    own = {path.parts[0] for path in (*made, PIPELINE_FILE)} | {str(DVC_FILE), str(DVC_LOCK)}
    entries = {Path(path.name) for path in Path().iterdir() if not path.name.startswith(".")}
    links = {path for path in entries if path.parts[0] not in own} | {Path(".dvcignore")}
    links |= {
        path
        for path in read - {PIPELINE_FILE}
        if path.parts[0] in own and not ({path, *path.parents} & made)
    }
    links = {path for path in links if path.exists() and not set(path.parents) & links}
    for place in {folder, *((folder / path).parent for path in links)}:
        place.mkdir(parents=True, exist_ok=True)
        for entry in place.iterdir():
            path = entry.relative_to(folder)
            if entry.is_symlink() and path not in links | made:
                entry.unlink()
    for path in links:
        link, target = folder / path, path.absolute()
        if link.is_symlink() and link.readlink() == target:
            continue
        if link.exists() and not link.is_symlink():
            raise InputError(f"{link} is in the way of a link to {path}: delete {folder}")
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _relative(path: str, root: Path) -> Path:
    return Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path)


def _untimed(repo: Repo) -> dict[str, str]:
    """Say of each stage that does not depend on the timed one what it is made of."""
    graph = repo.index.graph  # its edges point from a stage to its dependencies
    untimed: dict[str, str] = {}
    for stage in reversed(list(networkx.topological_sort(graph))):
        before = [each.name for each in graph.successors(stage)]
        if stage.name != TIMED and all(name in untimed for name in before):
            made_of = [_own_part(stage), sorted(untimed[name] for name in before)]
            untimed[stage.name] = sha256_json(made_of)
    return untimed


def _own_part(stage: Stage) -> list[Any]:

    params = [dep.read_params() for dep in stage.deps if isinstance(dep, ParamsDependency)]
    paths = [[each.def_path for each in each_kind] for each_kind in (stage.deps, stage.outs)]
    return [stage.cmd, params, *paths]
