"""The complete pipeline as a Prefect flow: DVC's stages in order, then gates, tracking, registry.

The flow walks the graph of `dvc.yaml`, the only description of the stages. The later steps have
side effects outside the workspace's data, so they are not DVC stages.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any, TypeVar, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.outcome import REFUSED, Outcome
from flows.run_notification import HOOKS, notify
from pruneflow.artifacts import read_json, sha256_file, sha256_json
from pruneflow.errors import InputError, PruneflowError
from pruneflow.judge.gates import Decision, GatesSettings, decide, load_gates, refuse
from pruneflow.judge.summary import Summary
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.paths import (
    CALIBRATION_SET,
    DECISION,
    DVC_LOCK,
    EVALUATION,
    GATES_FILE,
    MODEL,
    PAGE,
    SUMMARY,
)
from pruneflow.records import read_record, write_record
from pruneflow.settings.pipeline import PipelineSettings, load_settings
from pruneflow.workspace import check_workspace, run_lock, wait_for_leftover_stage
from tasks.dvc.remote import push
from tasks.dvc.repair import repair_dvc_files, touch_damaged_files
from tasks.dvc.repro import RETRIED, failed, run_stage, stage_order
from tasks.prefect.flow_runs import only_run
from tasks.registry import promotion, versions
from tasks.registry.production import compare_with_production
from tasks.tracking.git_state import git_state
from tasks.tracking.runs import log_run

Result = TypeVar("Result")


class StepFailed(PruneflowError):
    """A task ended in a Failed state, which the flow passes on as its own."""

    def __init__(self, state: State) -> None:
        super().__init__(state.message)
        self.state = state


@flow(name="pipeline", validate_parameters=False, **HOOKS)
def pipeline() -> State:
    """Prune, evaluate, check the gates, track and register, as configured in configs/.

    Returns:
        A Completed state holding an `Outcome`, named ``Accepted``, ``NothingNew`` (accepted,
        but already registered and no alias moved), ``Refused`` or ``NotEnforced`` (refused by gates
        whose run_mode is not enabled); or a Failed state whose message is one line for the user,
        named ``BadInput`` for bad input.
    """
    try:
        check_workspace()
        settings, gates = load_settings(), load_gates(GATES_FILE)
        with run_lock() as environment, only_run(notify):
            # Fails now if the store cannot be used, not after hours of pruning.
            _step("registry", lambda: promotion.undo_killed_move(settings.registry))
            _run_stages(environment, gates)
            outcome = _conclude(settings, gates)
    except StepFailed as error:
        return failed(error, error.state.name)
    except PruneflowError as error:
        return failed(error)
    if outcome.version is None:
        return Completed(name=REFUSED, message="; ".join(outcome.reasons), data=outcome)
    if not outcome.accepted:
        return Completed(name="NotEnforced", message="; ".join(outcome.reasons), data=outcome)
    if not outcome.new:
        place = "in production" if outcome.in_production else "a candidate"
        message = f"version {outcome.version} is {place} already"
        return Completed(name="NothingNew", message=message, data=outcome)
    return Completed(name="Accepted", data=outcome)


def served_model_requirements() -> list[str]:
    """Return the pip requirements of the served model: what is installed here."""
    names = ("mlflow", "torch", "transformers", "safetensors")
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


@task(name="step", task_run_name="{name}", cache_policy=NO_CACHE, **RETRIED)
def step(name: str, action: Callable[[], Any]) -> State:
    """Run one step after the stages; it ends in a Failed state instead of a traceback."""
    try:
        return Completed(data=action())
    except PruneflowError as error:
        return failed(error)


def _run_stages(environment: dict[str, str], gates: GatesSettings) -> None:
    for line in repair_dvc_files():
        get_run_logger().info(line)
    names = stage_order()
    if not names:
        raise InputError("dvc.yaml has no stages: restore it from git")
    wait_for_leftover_stage()
    for line in touch_damaged_files():
        get_run_logger().info(line)
    # In a synchronous flow the call returns the id, not a coroutine.
    progress = cast(
        UUID, create_progress_artifact(0.0, key="progress", description="Stages of this run")
    )
    for place, name in enumerate(names, start=1):
        position = f"[{place}/{len(names)}]"
        state = run_stage(name, position, environment, return_state=True)
        if not state.is_completed():
            # An older decision must not be taken for one about this run.
            write_record(DECISION, refuse(name, str(state.message), gates))
        _result(state)
        update_progress_artifact(progress, 100 * place / len(names))


def _conclude(settings: PipelineSettings, gates: GatesSettings) -> Outcome:
    """Decide, track, and register what was accepted."""
    logger = get_run_logger()
    summary = read_record(Summary, SUMMARY)
    decision = _step("gates", lambda: _decide(summary, settings, gates))
    lineage = _lineage(summary, decision)
    run_id = _step(
        "tracking", lambda: log_run(settings, summary, decision, {**lineage.tags(), **_versions()})
    )
    _publish(summary, decision)
    outcome = Outcome(decision.accepted, decision.reasons, summary, run_id)
    if not decision.may_register:
        logger.info("refused by the gates: nothing is registered, production stays as it is")
        return outcome
    name = settings.registry.name
    registered = _step(
        "registration",
        lambda: versions.register(
            settings.registry, MODEL, run_id, lineage, served_model_requirements()
        ),
    )
    number = registered.version
    logger.info(f"version {number} of {name} is the candidate")
    outcome = replace(outcome, version=number)
    if not outcome.accepted:
        return outcome
    in_production, moved = registered.in_production, False
    if settings.registry.promotion == "auto":
        move = _step("promotion", lambda: promotion.promote_accepted(settings.registry, number))
        if move is None:
            logger.info(
                f"version {number} was rolled back before: only `pruneflow promote` puts it back"
            )
        else:
            logger.info(move.sentence(name))
            in_production, moved = True, move.changed
    problem = _step("push", lambda: push(logger.info)) if settings.registry.push else None
    if problem:
        logger.warning(f"not pushed to DVC's remote: {problem}")
    new = registered.new or moved
    return replace(outcome, in_production=in_production, new=new, not_pushed=problem)


def _decide(summary: Summary, settings: PipelineSettings, gates: GatesSettings) -> Decision:
    from pruneflow.judge.freshness import stale

    production = None
    if gates.run_mode != "disabled" and any(gate.against == "production" for gate in gates.gates):
        production = compare_with_production(settings, read_record(Evaluation, EVALUATION))
    decision = decide(summary, gates, production, stale(summary, settings))
    write_record(DECISION, decision)
    return decision


def _lineage(summary: Summary, decision: Decision) -> versions.Lineage:
    from pruneflow.models.digests import model_digest

    digest = model_digest(MODEL)
    if digest != decision.model:
        raise InputError(
            f"{MODEL} is not the model that was evaluated: it was changed since; run "
            "`dvc repro -f -s select` and then `pruneflow run` again"
        )
    commit, dirty = git_state()
    return versions.Lineage(
        model_digest=digest,
        dense_digest=summary.digests.dense,
        data_digest=str(read_json(CALIBRATION_SET / "manifest.json")["digest"]),
        recipe_digest=summary.digests.settings,
        gates_digest=str(decision.digests["gates"]),
        decision_digest=sha256_json(read_json(DECISION)),
        git_commit=commit,
        git_dirty=dirty,
        dvc_lock=sha256_file(DVC_LOCK),
    )


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "dvc", "prefect", "mlflow", "lm_eval")
    return {f"version.{name}": version(name) for name in names}


def _publish(summary: Summary, decision: Decision) -> None:
    """Show the result on the run's page in Prefect."""
    from pruneflow.report.comparison_table import comparison

    lines = ["| | dense | pruned | change or kept |", "|---|---:|---:|---:|"]
    for section, rows in comparison(summary).items():
        lines.append(f"| **{section}** | | | |")
        lines += [f"| {' | '.join(row)} |" for row in rows]
    verdict = "accepted" if decision.accepted else "refused"
    reasons = [f"- {reason}" for reason in decision.reasons]
    create_link_artifact(
        key="report",
        link=PAGE.absolute().as_uri(),
        link_text=str(PAGE.absolute()),
        description="Where a browser follows no link from a server to a file, open it by its path",
    )
    create_markdown_artifact(
        key="result",
        markdown="\n".join([*lines, "", verdict, *reasons, "", f"Report: `{PAGE}`"]),
        description="Dense and pruned",
    )


def _step(name: str, action: Callable[[], Result]) -> Result:
    get_run_logger().info(name)
    return _result(step(name, action, return_state=True))


def _result(state: State) -> Any:
    if not state.is_completed():
        raise StepFailed(state)
    return state.result()
