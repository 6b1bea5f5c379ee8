"""Many recipes as one Prefect flow: run in parallel on Dask's workers, then compared.

Nothing is registered: to use a recipe, put it into configs/pipeline.yaml and run the pipeline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import flow, get_run_logger, unmapped
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.task_runners import TaskRunner
from prefect_dask import DaskTaskRunner

from flows.run_notification import HOOKS, notify
from pruneflow.artifacts import write_json
from pruneflow.errors import InputError, PruneflowError
from pruneflow.judge.pareto import Row, figures_of, pareto_table
from pruneflow.judge.summary import Summary
from pruneflow.paths import SUMMARY, SWEEP, SWEEP_TABLE
from pruneflow.records import read_record
from pruneflow.report.sweep_table import sweep_rows
from pruneflow.settings.pipeline import PipelineSettings, load_settings
from pruneflow.sweep_recipes import load_recipes
from pruneflow.workspace import STATE, check_workspace, run_lock
from tasks.dvc.repro import failed
from tasks.prefect.flow_runs import only_run
from tasks.sweep.recipes import clear_recipes, run_recipe, stop_recipes
from tasks.sweep.workspaces import RecipeWorkspace, prepare, to_share
from tasks.tracking.runs import log_sweep


@flow(name="sweep", validate_parameters=False, **HOOKS)
def sweep(workers: int = 2) -> State:
    """Run every recipe of configs/sweep.yaml, and compare them.

    Args:
        workers: number of recipes that run at the same time.

    Returns:
        A Completed state holding the rows of the table; or a Failed state with one line, when no
        recipe finished, or named ``BadInput`` when the recipes cannot be read.
    """
    try:
        if workers < 1:
            raise InputError(f"workers is {workers}: give at least 1")
        check_workspace()
        settings = load_settings()
        recipes = load_recipes(settings)
        with run_lock(), only_run(notify):
            rows = _sweep(settings, recipes, workers)
    except PruneflowError as error:
        return failed(error)
    failures = [f"{row['recipe']}: {row['error']}" for row in rows if row["error"]]
    if len(failures) == len(rows):
        return failed(PruneflowError(f"no recipe finished: {'; '.join(failures)}"))
    message = f"{len(rows) - len(failures)} of {len(rows)} recipes finished"
    return Completed(message=message, data=rows)


def _sweep(
    settings: PipelineSettings, recipes: Mapping[str, PipelineSettings], workers: int
) -> list[Row]:
    folders = [SWEEP / name for name in recipes]
    clear_recipes(folders)
    prepared = prepare(recipes)
    workspaces = {each.name: each for each in prepared}
    try:
        for name, stages in to_share(prepared).items():
            # A failure is reported by every recipe that needs these stages.
            _run_alone(workspaces[name], "shared stages", stages)
        errors = _run_in_parallel(prepared, workers)
        for name, workspace in workspaces.items():
            # One at a time: the recipes' speeds are compared.
            if name not in errors and (error := _run_alone(workspace, "speed and report", [])):
                errors[name] = error
    except BaseException:  # Ctrl-C, a cancelled flow
        stop_recipes(folders)
        raise
    summaries = {
        name: read_record(Summary, each.folder / SUMMARY)
        for name, each in workspaces.items()
        if name not in errors
    }
    rows = pareto_table({name: figures_of(each) for name, each in summaries.items()}, errors)
    write_json(SWEEP_TABLE, {"recipes": rows})
    create_table_artifact(sweep_rows(rows), key="sweep", description="Recipes compared")
    run_id = log_sweep(settings.registry, rows, recipes, summaries)
    get_run_logger().info(f"MLflow run {run_id}")
    return rows


def _run_alone(workspace: RecipeWorkspace, part: str, targets: list[str]) -> str | None:
    """Run stages of one recipe (all without targets); returns why they failed, or None."""
    return _error(run_recipe(workspace.name, workspace.folder, part, targets, return_state=True))


def _run_in_parallel(workspaces: Sequence[RecipeWorkspace], workers: int) -> dict[str, str]:
    """Run all stages of all recipes but the timed ones; returns the errors by recipe."""
    workers = min(workers, len(workspaces))
    runner: TaskRunner[Any] = DaskTaskRunner(
        cluster_kwargs={
            "n_workers": workers,
            "threads_per_worker": 1,
            # Threads of this process: the work is done by their child processes.
            "processes": False,
            "scheduler_kwargs": {"dashboard": False},
            # Dask serves HTTP even so: on this machine only.
            "dashboard_address": "127.0.0.1:0",
            "worker_dashboard_address": "127.0.0.1:0",
            "local_directory": str(STATE.absolute() / "dask"),
        }
    )
    return make_models.with_options(task_runner=runner)(workspaces)


@flow(name="recipes", validate_parameters=False)
def make_models(workspaces: Sequence[RecipeWorkspace]) -> dict[str, str]:
    """Map the recipes over the task runner; one that fails does not stop the others."""
    folders = [each.folder for each in workspaces]
    try:
        states = run_recipe.map(
            [each.name for each in workspaces],
            folders,
            unmapped("model"),
            [list(each.untimed) for each in workspaces],
            return_state=True,
        )
    except BaseException:
        stop_recipes(folders)  # before the runner waits for its workers
        raise
    errors = {each.name: _error(state) for each, state in zip(workspaces, states, strict=True)}
    return {name: error for name, error in errors.items() if error}


def _error(state: State) -> str | None:
    return None if state.is_completed() else " ".join(str(state.message).split())
