"""The user's command line: `pruneflow configure | plan | run | data | status | ...`.

Nothing heavy is imported before a command needs it, so that `pruneflow --help` answers at once.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_options import AsJson, examples, one_of, print_json, profiles, schedules, stages
from flows.data_cli import app as data_app
from flows.flow_runner import run_flow, run_sweep, set_environment
from flows.gc_cli import app as housekeeping_app
from flows.inspection_cli import app as inspection_app
from flows.registry_cli import app as registry_app
from pruneflow.errors import PruneflowError, report
from pruneflow.process_environment import complete_environment
from pruneflow.workspace import check_workspace, check_writable, run_lock

if TYPE_CHECKING:
    from flows.outcome import Outcome
    from pruneflow.judge.pareto import Row
    from pruneflow.settings.pipeline import PipelineSettings, RegistrySettings

REFUSED, INTERRUPTED = 1, 130

app = typer.Typer(
    name="pruneflow",
    help="Prune a language model in rounds, measure what it kept, and register what passes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(inspection_app)
app.add_typer(registry_app)
app.add_typer(housekeeping_app)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line; errors a user can act on are one line on stderr."""
    # SIGTERM ends a run as Ctrl-C does, so that no stage is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name, why in complete_environment().items():
        print(f"{name} is ignored: {why}", file=sys.stderr)
    try:
        app()
    except PruneflowError as error:
        sys.exit(report(error))
    except SystemExit as end:  # what typer makes of Ctrl-C, without a word
        if end.code == INTERRUPTED:
            print("interrupted: run it again to continue where it stopped", file=sys.stderr)
        raise


@app.command(epilog=examples("pruneflow configure demo", "pruneflow configure hub"))
def configure(
    profile: Annotated[
        str,
        typer.Argument(
            help="A name in configs/profiles/, e.g. demo.", autocompletion=one_of(profiles)
        ),
    ],
) -> None:
    """Write configs/pipeline.yaml from a profile and the defaults."""
    check_workspace()
    from pruneflow import plan as planning

    kept = planning.configure(profile)
    if kept is not None:
        print(f"the former configs/pipeline.yaml is kept as {kept}")
    print(f"configs/pipeline.yaml is the profile {profile}")


@app.command(
    epilog=examples(
        "pruneflow plan --ratio 0.2 --rounds 3",
        "pruneflow plan --ratio 0.3 --rounds 6 --schedule geometric",
        "pruneflow plan --parameters 100000000 --rounds 4 --json",
    )
)
def plan(
    rounds: Annotated[int, typer.Option(help="Number of rounds.")],
    ratio: Annotated[
        float | None, typer.Option(help="Share of the block weights to remove, between 0 and 1.")
    ] = None,
    parameters: Annotated[
        int | None, typer.Option(help="Or: number of parameters to keep, embeddings included.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--bytes", help="Or: bytes of weights to keep.")
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="linear (equal steps) or geometric (equal shares of the rest).",
            autocompletion=one_of(schedules),
        ),
    ] = "linear",
    as_json: AsJson = False,
) -> None:
    """Write the rounds of configs/pipeline.yaml.

    Give the goal as one of --ratio, --parameters and --bytes.
    """
    check_workspace()
    from pruneflow import plan as planning
    from pruneflow.settings.base import check
    from pruneflow.settings.pruning import Target

    asked = {"ratio": ratio, "parameters": parameters, "bytes": size}
    goal = check(Target, {key: value for key, value in asked.items() if value is not None}, "plan")
    settings = planning.plan(goal, rounds, schedule)
    if as_json:
        print_json(settings.model_dump(mode="json", include={"rounds", "final_round"}))
        return
    for name, planned in settings.rounds.items():
        print(f"{name}  to {planned}, from {planned.parent}")


@app.command(epilog=examples("pruneflow run", "pruneflow configure demo && pruneflow run --json"))
def run(as_json: AsJson = False) -> None:
    """Prune, evaluate, check the gates and register.

    Only outdated stages run. If nothing changed, two lines say so. Progress goes to stderr.

    Exit code: 0 accepted, or refused by gates that are not enforced; 1 refused by the gates, or
    failed; 2 bad input; 130 interrupted.
    """
    check_workspace()
    from flows.last_run import standing_outcome
    from pruneflow.judge.gates import load_gates
    from pruneflow.paths import GATES_FILE
    from pruneflow.settings.pipeline import load_settings

    with run_lock() as environment:
        settings = load_settings()
        standing = standing_outcome(settings, load_gates(GATES_FILE))
        if standing is None:
            preflight()
            os.environ.update(environment)
            set_environment()
        outcome = standing or run_flow()
    if as_json:
        print_json(outcome.to_json())
    elif standing is not None:
        _print_standing(standing, settings.registry.name)
    else:
        _print_outcome(outcome, settings)
    if outcome.version is None:
        raise typer.Exit(REFUSED)


@app.command(epilog=examples("pruneflow sweep", "pruneflow sweep --workers 1 --json"))
def sweep(
    workers: Annotated[int, typer.Option(help="Number of recipes to run in parallel.", min=1)] = 2,
    as_json: AsJson = False,
) -> None:
    """Run the recipes of configs/sweep.yaml, and compare them.

    Stages that recipes share with each other or with the last run are executed once; a second sweep
    runs only outdated stages. Progress goes to stderr.

    Exit code: 0 if at least one recipe finished, 1 if none did, 2 bad input, 130 interrupted.
    """
    check_workspace()
    from pruneflow.sweep_recipes import load_recipes

    with run_lock() as environment:
        settings = preflight()
        load_recipes(settings)
        os.environ.update(environment)
        set_environment()
        rows = run_sweep(workers)
    if as_json:
        print_json({"recipes": rows})
    else:
        _print_sweep(rows)


@app.command(epilog=examples("pruneflow stage documents", "pruneflow stage round@r1"))
def stage(
    name: Annotated[
        str,
        typer.Argument(
            help="As in dvc.yaml, e.g. documents or round@r1.", autocompletion=one_of(stages)
        ),
    ],
) -> None:
    """Run one stage now, whether or not anything changed.

    dvc.yaml runs its stages with the same code; dvc.lock is not updated.
    """
    check_workspace()
    from pruneflow.stages import run_stage_by_name

    raise typer.Exit(run_stage_by_name(name))


def preflight() -> "PipelineSettings":
    """Run the quick checks of a run before Prefect starts.

    Raises:
        InputError: a setting, the model, a domain, the data folder, the temporary folder, DVC's
            cache, MLflow's store or its experiment cannot be used.
    """
    from pruneflow.data.sources import known_domains
    from pruneflow.footprint import check_temporary_folder
    from pruneflow.judge.gates import load_gates
    from pruneflow.models.source import check_source
    from pruneflow.paths import DOMAINS_FILE, GATES_FILE
    from pruneflow.settings.pipeline import load_settings
    from tasks.dvc.status import check_cache
    from tasks.tracking.location import has_store
    from tasks.tracking.store import connect, find_experiment

    settings = load_settings()
    known_domains(settings.documents.domains, DOMAINS_FILE)
    check_writable(Path("data"))
    load_gates(GATES_FILE)
    check_source(settings.model)
    # Now, and not after hours of pruning.
    check_temporary_folder(settings)
    check_cache()
    if has_store(settings.registry):
        find_experiment(connect(settings.registry), settings.registry)
    return settings


def _print_standing(outcome: "Outcome", name: str) -> None:
    from pruneflow.paths import PAGE

    place = f"version {outcome.version} of {name} is"
    if outcome.version is None:
        state = f"refused before, and nothing has changed: {'; '.join(outcome.reasons)}"
    elif outcome.in_production:
        state = f"{place} in production"
    else:
        state = f"{place} the candidate"
        state += f": {_program('pruneflow')} promote" if outcome.accepted else ""
    print(f"nothing to do: {state}")
    print(f"report      {PAGE}")


def _print_outcome(outcome: "Outcome", settings: "PipelineSettings") -> None:
    from rich.console import Console

    from pruneflow.paths import MODEL, PAGE
    from pruneflow.report.result_table import result_table

    version = f"version {outcome.version} of {settings.registry.name} is"
    promote = f"{_program('pruneflow')} promote"
    Console().print(result_table(outcome.summary))
    print(f"report      {PAGE}")
    print(f"model       {MODEL}")
    print(f"MLflow      {_mlflow_page(settings.registry)}")
    if outcome.version is None:
        print("refused     nothing is registered, production stays as it is")
    elif not outcome.accepted:
        print(
            f"unenforced  {version} the candidate although gates refused it: "
            "`run_mode: enabled` in configs/gates.yaml enforces them"
        )
    elif outcome.new:
        place = "in production" if outcome.in_production else f"the candidate: {promote}"
        print(f"accepted    {version} {place}")
    else:
        place = "in production already"
        if not outcome.in_production:
            place = f"a candidate already: {promote}"
        print(f"nothing new {version} {place}")
    for reason in outcome.reasons:
        print(f"  {reason}")
    if outcome.not_pushed:
        print(f"not pushed  {outcome.not_pushed}")


def _mlflow_page(settings: "RegistrySettings") -> str:
    from tasks.tracking.location import is_server

    if is_server(settings):
        return settings.tracking_uri
    return f"{_program('mlflow')} ui --backend-store-uri {settings.tracking_uri}"


def _print_sweep(rows: "list[Row]") -> None:
    from rich.console import Console

    from pruneflow.paths import SWEEP, SWEEP_TABLE
    from pruneflow.report.sweep_table import sweep_table

    Console().print(sweep_table(rows))
    print(f"table       {SWEEP_TABLE}")
    print(f"models      {SWEEP}/RECIPE/data/model")


def _program(name: str) -> str:
    """How to call a program of this environment from here, whether or not it is on the path."""
    program = Path(sys.executable).parent / name
    return str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)


if __name__ == "__main__":
    main()
