"""Notifications about runs: a real webhook, real flow runs, and a webhook that fails."""

import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import Cancelling, Completed, Crashed, Failed

from flows.pipeline import pipeline
from flows.run_notification import notify
from pruneflow.settings.pipeline import NotifySettings, load_settings
from tasks.prefect.webhook import VARIABLE, send, webhook_url, without_secrets
from tests.pipeline.toy import Workspace
from tests.servers import Webhook, free_port

ALL = {"runs": "all"}


@pytest.fixture
def nobody() -> str:
    """The URL of a port where nothing listens."""
    return f"http://ada:password@127.0.0.1:{free_port()}/services/secret?token=abc"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.prefect.webhook.PAUSE", 0.0)
    monkeypatch.delenv(VARIABLE, raising=False)


def ended(state: Any, scheduled: bool = True) -> None:
    """Do what Prefect does when a run ends in a state."""
    run = FlowRun(flow_id=uuid4(), name="a-run", deployment_id=uuid4() if scheduled else None)
    notify(pipeline, run, state)


def run_of_a_deployment() -> Any:
    """Run the flow as a worker does, for a run that a deployment made; returns its last state."""
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(pipeline), "weekly")
        run = client.create_flow_run_from_deployment(deployment)
    return run_flow(pipeline, flow_run=run, return_type="state")


@pytest.mark.slow
def test_scheduled_runs_that_are_refused_or_fail_are_reported_and_others_are_not(
    workspace: Workspace, server: None, webhook: Webhook
) -> None:
    workspace.set(notify={"webhook": webhook.url})
    assert run_of_a_deployment().name == "Accepted"
    workspace.gate(0.9)
    assert pipeline(return_state=True).name == "Refused"  # by hand: somebody sees it
    assert webhook.heard == []

    refused = run_of_a_deployment()
    assert refused.name == "Refused"
    (sent,) = webhook.heard
    outcome = refused.result()
    assert sent["flow"] == "pipeline" and sent["state"] == "Refused"
    assert sent["reasons"] == outcome.reasons and outcome.reasons[0] in sent["text"]
    assert sent["mlflow_run"] == outcome.run_id
    assert sent["production"] == "1"
    assert sent["report"] == str(Path("data/reports/report.html").absolute())
    assert sent["time"].endswith("+00:00") and sent["path"] == "/services/secret"

    workspace.set(
        notify={"webhook": webhook.url},
        rounds={"r1": {"parent": "dense", "ratio": 0.1}, "r2": {"parent": "r1", "ratio": 0.3}},
    )
    Path("fail-r2").touch()
    assert run_of_a_deployment().name == "BadInput"
    sent = webhook.heard[1]
    assert sent["state"] == "BadInput" and sent["mlflow_run"] is None
    assert sent["reasons"] == ["the toy stage r2 was told to fail: delete fail-r2"]
    assert sent["production"] == "1" and len(webhook.heard) == 2


@pytest.mark.slow
def test_a_run_that_crashes_is_reported(
    workspace: Workspace, server: None, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    workspace.set(notify={"webhook": webhook.url})
    monkeypatch.setattr("flows.pipeline.check_workspace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_of_a_deployment()
    assert [sent["state"] for sent in webhook.heard] == ["Crashed"]


@pytest.mark.slow
def test_a_dead_webhook_is_a_warning_without_its_secret_and_changes_no_outcome(
    workspace: Workspace, nobody: str
) -> None:
    workspace.gate(0.9)
    workspace.set(notify={"webhook": nobody, **ALL})
    done = workspace.pruneflow("run")
    assert done.returncode == 1, done.stderr
    assert "block_ratio is 0.2, below the limit 0.9" in done.stdout
    assert "no notification was sent: http://127.0.0.1/... does not answer" in done.stderr
    kept = [path.read_bytes() for path in Path("mlflow").rglob("*") if path.is_file()]
    said = done.stdout + done.stderr
    for secret in ("password", "services/secret", "token=abc"):
        assert secret not in said
        assert not any(secret.encode() in content for content in kept)
    assert any(b"webhook: http://127.0.0.1/..." in content for content in kept)
    assert nobody in Path("configs/pipeline.yaml").read_text()


def test_only_scheduled_runs_are_reported_unless_the_settings_ask_for_all(
    workspace: Workspace, webhook: Webhook
) -> None:
    workspace.set(notify={"webhook": webhook.url})
    ended(Failed(message="no"), scheduled=False)
    assert webhook.heard == []
    ended(Failed(message="no"))
    assert [sent["reasons"] for sent in webhook.heard] == [["no"]]
    workspace.set(notify={"webhook": webhook.url, **ALL})
    ended(Failed(message="no"), scheduled=False)
    assert len(webhook.heard) == 2


def test_the_settings_select_the_events(workspace: Workspace, webhook: Webhook) -> None:
    ends = [
        Crashed(message="oom"),
        Cancelling(),
        Failed(message="no"),
        Completed(name="NotEnforced"),
    ]
    for events, states in (
        (["failed"], ["Crashed", "Failed"]),
        (["cancelled"], ["Cancelling"]),
        ([], []),
    ):
        webhook.heard.clear()
        workspace.set(notify={"webhook": webhook.url, "events": events})
        for state in ends:
            ended(state)
        assert [sent["state"] for sent in webhook.heard] == states


def test_the_url_may_come_from_the_environment_and_the_setting_takes_precedence(
    workspace: Workspace, webhook: Webhook, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(Failed(message="not sent"))
    monkeypatch.setenv(VARIABLE, webhook.url)
    ended(Failed(message="no"))
    assert len(webhook.heard) == 1
    monkeypatch.setenv(VARIABLE, nobody)
    workspace.set(notify={"webhook": webhook.url})
    ended(Failed(message="no"))
    assert len(webhook.heard) == 2


def test_a_run_that_failed_because_of_its_settings_is_reported(
    workspace: Workspace, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.set(notify={"webhook": webhook.url})
    file = Path("configs/pipeline.yaml")
    file.write_text(file.read_text().replace("ratio: 0.2", "ratio: 7"))
    ended(Failed(name="BadInput", message="a ratio of 7"))
    assert webhook.heard[0]["reasons"] == ["a ratio of 7"]
    assert webhook.heard[0]["production"] is None
    file.write_text("no YAML: [")
    monkeypatch.setenv(VARIABLE, webhook.url)
    ended(Failed(name="BadInput", message="no YAML"))
    assert webhook.heard[1]["reasons"] == ["no YAML"]


def test_server_errors_are_retried_and_refusals_are_not(
    webhook: Webhook, nobody: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    webhook.answers = [503, 500]
    assert send(webhook.url, {"a": 1}) is None
    assert len(webhook.heard) == 3
    webhook.answers = [404]
    assert send(webhook.url, {}) == "http://127.0.0.1/... answered with status 404"
    webhook.answers = [502] * 3
    assert send(webhook.url, {}) == "http://127.0.0.1/... answered with status 502"
    assert len(webhook.heard) == 7
    assert send(nobody, {}) == "http://127.0.0.1/... does not answer (ConnectError)"
    assert send("ftp://example.org/secret", {}) == (
        "ftp://example.org/... does not answer (UnsupportedProtocol)"
    )
    assert "secret" not in caplog.text


def test_a_masked_url_has_nothing_secret() -> None:
    assert without_secrets("https://user:word@hooks.example.org:8443/T00/B00/x?y=z") == (
        "https://hooks.example.org/..."
    )
    assert without_secrets("https://[secret") == "the webhook"


def test_by_default_nothing_is_sent_and_all_settings_are_written(workspace: Workspace) -> None:
    assert load_settings().notify == NotifySettings(
        webhook=None, events=["refused", "failed"], runs="scheduled"
    )
    assert webhook_url(load_settings().notify) is None
