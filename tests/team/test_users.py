"""Who may move an alias, where MLflow's server has users: nobody whom it does not know."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tasks.registry import promotion
from tests.pipeline.registry import Registry
from tests.pipeline.toy import Workspace
from tests.team.shared import ADMIN, MLFLOW_USER, PASSWORD, Team

pytestmark = pytest.mark.team

MODEL = "guarded"


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Make this process another user's; None is nobody's."""

    def make(user: str | None) -> None:
        for key, value in zip(MLFLOW_USER, (user, PASSWORD), strict=True):
            if user is None:
                monkeypatch.delenv(key, raising=False)
            else:
                monkeypatch.setenv(key, str(value))

    return make


def test_only_those_who_were_given_the_permission_move_an_alias(
    team: Team,
    ada: Callable[[str], Workspace],
    become: Callable[[str | None], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.server import get_app_client

    ada(MODEL)
    monkeypatch.setattr(promotion, "smoke_tests", lambda store: nullcontext(lambda uri: ["a text"]))
    settings = team.registry(MODEL)
    store = Registry(settings)
    for content in "ab":
        store.register(content)
    promotion.promote(settings, "1")
    before = store.aliases()

    refusals: dict[str | None, Any] = {
        None: ("UNAUTHENTICATED", "does not know you: set MLFLOW_TRACKING_USERNAME"),
        "ben": ("PERMISSION_DENIED", "does not let you do this"),
    }
    for user, (code, said) in refusals.items():
        become(user)
        with pytest.raises(MlflowException) as refused:
            store.client.set_registered_model_alias(MODEL, "production", "2")
        assert refused.value.error_code == code
        workspace = team.workspace(tmp_path / f"of-{user}", user, MODEL)
        done = workspace.pruneflow("promote")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
        done = workspace.pruneflow("run")
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert said in done.stderr.splitlines()[-1]
    become("ada")
    assert store.aliases() == before

    become(ADMIN)
    users = get_app_client("basic-auth", tracking_uri=team.url("mlflow"))
    users.grant_user_permission("ben", "registered_model", MODEL, "EDIT")
    become("ben")
    store.client.set_registered_model_alias(MODEL, "production", "1")
    with pytest.raises(MlflowException, match="Permission denied"):
        store.client.delete_registered_model_alias(MODEL, "production")
    become(ADMIN)
    users.revoke_user_permission("ben", "registered_model", MODEL)
    users.grant_user_permission("ben", "registered_model", MODEL, "MANAGE")
    become("ben")
    assert promotion.promote(settings, "2", promotion.Approval("ben")).changed
    assert store.aliases() == {"candidate": "2", "production": "2", "previous": "1"}

    become(ADMIN)
    users.grant_user_permission("ben", "experiment", store.experiment, "EDIT")
    done = workspace.pruneflow("run")
    assert done.returncode == 0, done.stderr
    assert store.aliases() == {"candidate": "3", "production": "3", "previous": "2"}
