"""When a run has nothing to do, and every change after which it has."""

from collections.abc import Callable

import pytest

import tasks.dvc.status
from flows.last_run import standing_outcome
from flows.outcome import Outcome
from flows.pipeline import pipeline
from pruneflow.artifacts import read_json, write_json
from pruneflow.judge.gates import load_gates
from pruneflow.paths import DECISION, GATES_FILE, SUMMARY
from pruneflow.settings.pipeline import load_settings
from pruneflow.workspace import FLOW_RUN
from tasks.registry import promotion, versions
from tasks.registry.registered_model import history_of, read_registered_model
from tasks.tracking.store import connect
from tests.pipeline.toy import Workspace

pytestmark = pytest.mark.slow


def standing() -> Outcome | None:
    return standing_outcome(load_settings(), load_gates(GATES_FILE))


def test_an_outcome_stands_until_anything_that_it_depends_on_changes(
    workspace: Workspace, server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert standing() is None
    made = pipeline(return_state=True).result()
    found = standing()
    assert found is not None
    assert (found.version, found.in_production, found.new) == ("1", True, False)
    assert (found.run_id, found.summary) == (made.run_id, made.summary)

    settings = load_settings().registry
    client, name = connect(settings), settings.name
    summary = read_json(SUMMARY)
    deeper = {"r1": {"parent": "dense", "ratio": 0.1}, "r2": {"parent": "r1", "ratio": 0.3}}
    decision = read_json(DECISION)
    changes: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "settings": (lambda: workspace.set(rounds=deeper), workspace.set),
        "gates": (lambda: workspace.gate(0.1), lambda: workspace.gate(0.15)),
        "an out": (
            lambda: write_json(SUMMARY, {**summary, "more": 1}),
            lambda: write_json(SUMMARY, summary),
        ),
        "no decision": (DECISION.unlink, lambda: write_json(DECISION, decision)),
        "a killed run": (FLOW_RUN.touch, FLOW_RUN.unlink),
        "a half-done move": (
            lambda: client.set_registered_model_tag(name, "pending_move", "{}"),
            lambda: client.delete_registered_model_tag(name, "pending_move"),
        ),
        "not in production": (
            lambda: client.delete_registered_model_alias(name, "production"),
            lambda: client.set_registered_model_alias(name, "production", "1"),
        ),
        "a deleted MLflow run": (
            lambda: client.delete_run(made.run_id),
            lambda: client.restore_run(made.run_id),
        ),
        "not pushed": (tasks.dvc.status._PUSHED.unlink, tasks.dvc.status.record_push),
    }
    for change, undo in changes.values():
        change()
        assert standing() is None, change
        undo()
        assert standing() == found, undo
    with monkeypatch.context() as patch:
        patch.setattr(tasks.dvc.status, "installed_versions", dict)
        assert standing() is None


def test_with_nothing_to_do_the_command_line_prints_two_lines_without_prefect(
    workspace: Workspace,
) -> None:
    assert workspace.pruneflow("run").returncode == 0
    again = workspace.pruneflow("run")
    assert again.returncode == 0 and "Prefect" not in again.stderr
    first, second = again.stdout.splitlines()
    assert first == "nothing to do: version 1 of toy-pruned is in production"
    assert second.endswith("data/reports/report.html")

    workspace.gate(0.9)
    assert "Prefect" in workspace.pruneflow("run").stderr
    again = workspace.pruneflow("run")
    assert again.returncode == 1 and "Prefect" not in again.stderr
    first, _ = again.stdout.splitlines()
    assert first.startswith("nothing to do: refused before, and nothing has changed: block_ratio")


def test_status_reads_a_local_store_as_mlflow_does(workspace: Workspace, server: None) -> None:
    pipeline()
    settings = load_settings().registry
    model = read_registered_model(settings)
    assert model is not None
    assert model.by_alias() == versions.status(settings)
    assert history_of(model.tags) == promotion.history(settings)
