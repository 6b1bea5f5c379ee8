"""The pipeline flow on a real Prefect server, and what a user sees of it."""

from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.schemas.objects import State

from flows.pipeline import pipeline, step
from flows.promotion import promotion, roll_back
from pruneflow.artifacts import read_json, sha256_json, write_json
from pruneflow.errors import InputError, StoreBusyError
from pruneflow.paths import DECISION
from pruneflow.settings.pipeline import load_settings
from tasks.dvc.repro import run_stage
from tasks.registry import versions
from tasks.registry.promotion import history
from tasks.tracking.store import connect, experiment
from tests.pipeline.toy import Workspace

pytestmark = pytest.mark.slow

STAGES = ["calibration", "r1", "r2", "select", "report"]


def production() -> str | None:
    found = versions.status(load_settings().registry)[versions.PRODUCTION]
    return None if found is None else found["version"]


def test_the_flow_runs_registers_promotes_and_then_has_nothing_to_do(
    workspace: Workspace, server: None
) -> None:
    state = pipeline(return_state=True)
    assert state.name == "Accepted"
    outcome = state.result()
    assert (outcome.accepted, outcome.version, outcome.in_production) == (True, "1", True)
    assert workspace.executed() == STAGES
    decision = read_json(DECISION)
    assert decision["accepted"]

    settings = load_settings().registry
    client = connect(settings)
    run = client.get_run(outcome.run_id)
    assert run.data.params["rounds.r2.ratio"] == "0.2"
    assert run.data.metrics["perplexity/domains/news/pruned"] == 12

    def by_step(metric: str) -> list[tuple[int, float]]:
        history = client.get_metric_history(outcome.run_id, metric)
        return [(point.step, point.value) for point in history]

    assert by_step("round/target/ratio") == [(1, 0.1), (2, 0.2)]
    # The dense model is step 0.
    law = by_step("round/validation/pruned/law/perplexity")
    assert law == [(0, 10), (1, 12), (2, 12)]
    assert by_step("round/block_weights") == [(0, 100)]
    (dataset,) = run.inputs.dataset_inputs
    manifest = read_json(Path("data/calibration/set/manifest.json"))
    assert manifest["digest"].startswith(dataset.dataset.digest)
    assert run.data.tags["decision"] == "accepted"
    version = client.get_model_version_by_alias(settings.name, "production")
    assert version.tags["decision_digest"] == sha256_json(decision)
    assert version.tags["data_digest"] == manifest["digest"]

    state = pipeline(return_state=True)
    assert state.name == "NothingNew"
    again = state.result()
    assert workspace.executed() == []
    assert (again.version, again.in_production) == ("1", True)
    assert versions.status(settings)["previous"] is None

    workspace.set(rounds={**load_rounds(), "r2": {"parent": "r1", "ratio": 0.3}})
    assert pipeline(return_state=True).result().version == "2"
    assert workspace.executed() == ["r2", "select", "report"]
    move = promotion(version="1", return_state=True).result()
    assert (move.version, move.former) == ("1", "2")


def load_rounds() -> dict[str, dict]:
    return {name: each.model_dump() for name, each in load_settings().rounds.items()}


def test_a_refused_model_is_not_registered_and_production_stays(
    workspace: Workspace, server: None
) -> None:
    pipeline()
    workspace.gate(0.9)
    workspace.set(rounds={**load_rounds(), "r2": {"parent": "r1", "ratio": 0.3}})
    state = pipeline(return_state=True)
    assert state.name == "Refused"
    outcome = state.result()
    assert (outcome.accepted, outcome.version) == (False, None)
    assert outcome.reasons and outcome.reasons[0] in state.message
    assert production() == "1"
    settings = load_settings().registry
    client = connect(settings)
    assert len(client.search_model_versions(f"name='{settings.name}'")) == 1
    tags = client.get_run(outcome.run_id).data.tags
    assert tags["decision"] == "refused" and outcome.reasons[0] in tags["reasons"]


def test_with_manual_promotion_an_accepted_model_waits_as_candidate(
    workspace: Workspace, server: None
) -> None:
    workspace.set(registry={"promotion": "manual"})
    outcome = pipeline(return_state=True).result()
    assert (outcome.version, outcome.in_production, production()) == ("1", False, None)
    state = promotion(return_state=True)
    assert state.name == "BadInput" and "version 1 needs approval" in state.message
    assert production() is None
    assert promotion(approved_by="ada", because="it is small", return_state=True).result().changed
    assert production() == "1"
    (move,) = history(load_settings().registry)
    assert (move["by"], move["why"]) == ("ada", "it is small")
    state = pipeline(return_state=True)
    assert (state.name, state.message) == ("NothingNew", "version 1 is in production already")
    assert roll_back(return_state=True).name == "BadInput"


def test_a_run_that_was_killed_does_not_stay_running_in_mlflow(
    workspace: Workspace, server: None
) -> None:
    pipeline()
    settings = load_settings().registry
    client = connect(settings)
    (run,) = client.search_runs([experiment(client, settings)])
    killed = client.create_run(run.info.experiment_id, tags=run.data.tags)
    others = client.create_run(run.info.experiment_id, tags={"workspace": "elsewhere"})
    pipeline()
    left = [client.get_run(each.info.run_id).info.status for each in (killed, others)]
    assert left == ["KILLED", "RUNNING"]


def test_gates_that_are_off_let_a_candidate_pass_but_nothing_into_production(
    workspace: Workspace, server: None
) -> None:
    gates = Path("configs/gates.yaml")
    gates.write_text(gates.read_text().replace("enabled", "disabled"))
    outcome = pipeline(return_state=True).result()
    assert (outcome.accepted, outcome.version, production()) == (False, "1", None)


def test_a_failing_stage_ends_the_flow_with_its_line_and_is_a_refusal(
    workspace: Workspace, server: None
) -> None:
    write_json(DECISION, {"accepted": True})
    Path("fail-r2").touch()
    state = pipeline(return_state=True)
    assert state.is_failed() and state.name == "BadInput"
    assert state.message == "the toy stage r2 was told to fail: delete fail-r2"
    assert workspace.executed() == ["calibration", "r1", "r2"]
    decision = read_json(DECISION)
    assert decision["accepted"] is False and decision["model"] is None
    assert "round@r2 ended in an error" in decision["reasons"][0]
    assert "was told to fail" in decision["reasons"][0]


def test_a_task_whose_error_may_pass_is_run_again_and_bad_input_is_not(
    workspace: Workspace, server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (step, run_stage):
        monkeypatch.setattr(each, "retry_delay_seconds", 0)
    errors: list[Exception] = []

    def action() -> str:
        if errors:
            raise errors.pop()
        return "done"

    def run(task: Any, *arguments: Any) -> State:
        states: list[State] = []

        @flow
        def one_task() -> None:
            states.append(task(*arguments, return_state=True))

        one_task()
        return states[0]

    errors[:] = [StoreBusyError("busy"), StoreBusyError("busy")]
    assert run(step, "a step", action).result() == "done"
    errors[:] = [StoreBusyError("busy")] * 9
    state = run(step, "a step", action)
    assert (state.name, state.message, len(errors)) == ("BadInput", "busy", 5)
    errors[:] = [StoreBusyError("never reached"), InputError("wrong")]
    state = run(step, "a step", action)
    assert (state.name, state.message, len(errors)) == ("BadInput", "wrong", 1)

    Path("flaky-calibration").touch()
    assert run(run_stage, "calibration", "[1/1]", {}).is_completed()
    assert workspace.executed() == ["calibration"] * 2


def test_an_unknown_metric_ends_the_flow_before_any_stage(
    workspace: Workspace, server: None
) -> None:
    gates = Path("configs/gates.yaml")
    gates.write_text(gates.read_text().replace("block_ratio", "blockratio"))
    state = pipeline(return_state=True)
    assert state.name == "BadInput" and "metric blockratio is unknown" in state.message
    assert workspace.executed() == []


def test_the_command_line_shows_one_line_and_exit_code_2_for_bad_input(
    workspace: Workspace,
) -> None:
    Path("fail-r1").touch()
    done = workspace.pruneflow("run")
    assert done.returncode == 2
    assert done.stderr.count("was told to fail") == 1
    assert done.stderr.splitlines()[-1].startswith("error: the toy stage r1 was told to fail")
    for noise in ("Traceback", "NoneType", "Finished in state", "httpx"):
        assert noise not in done.stderr + done.stdout
    assert "[3/6] round@r1" in done.stderr


def test_the_command_line_lists_the_reasons_and_exits_1_when_refused(
    workspace: Workspace,
) -> None:
    workspace.gate(0.9)
    done = workspace.pruneflow("run")
    assert done.returncode == 1
    assert "block_ratio is 0.2, below the limit 0.9" in done.stdout
    assert "data/reports/report.html" in done.stdout
    assert "mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db" in done.stdout
    assert "Traceback" not in done.stderr
    assert production() is None
