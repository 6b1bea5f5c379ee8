"""Moves of production: what they check, what a kill leaves, and ten at once."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pruneflow.errors import InputError
from pruneflow.settings.pipeline import RegistrySettings
from tasks.registry import promotion, versions
from tasks.registry.promotion import Approval
from tasks.registry.registered_model import rolled_back_in
from tasks.registry.smoke_test import SmokeError
from tests.pipeline.commands import PROMOTE_AT_ONCE, pruneflow_here
from tests.pipeline.registry import SETTINGS, Registry
from tests.pipeline.toy import Workspace
from tests.servers import wait_until

pytestmark = pytest.mark.slow

WRITES = (
    "set_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "delete_registered_model_tag",
)
# Loads and answers; broken when told so, and slow at the second load, after the alias has moved.
SERVED = """
import os, time
from pathlib import Path
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        if Path("broken").exists():
            raise ValueError("the weights are unusable")
        loads = len(list(Path(".").glob("loaded-*")))
        Path(f"loaded-{loads}").write_text(str(os.getpid()))
        if loads == 1 and Path("slow").exists():
            time.sleep(120)

    def predict(self, context, model_input, params=None):
        return ["" if Path("silent").exists() else "a text" for _ in model_input.iloc[:, 0]]

mlflow.models.set_model(Model())
"""


GATE = {
    "name": "smaller",
    "metric": "block_ratio",
    "against": "production",
    "comparison": "at_least",
    "limit": 0.0,
    "why": "It must get smaller.",
    "passed": True,
}


def test_a_move_says_who_and_why_and_the_history_keeps_the_order(store: Registry) -> None:
    for content in "ab":
        store.register(content)
        promotion.promote(SETTINGS, None, Approval("ada", f"{content} is good"))
    promotion.rollback(SETTINGS, Approval("bob"))
    told = [
        (each["kind"], each["version"], each["former"], each["by"], each["why"])
        for each in promotion.history(SETTINGS)
    ]
    assert told == [
        ("promotion", "1", None, "ada", "a is good"),
        ("promotion", "2", "1", "ada", "b is good"),
        ("rollback", "1", "2", "bob", ""),
    ]
    assert rolled_back_in(promotion.history(SETTINGS), "2")
    assert not rolled_back_in(promotion.history(SETTINGS), "1")
    promotion.promote(SETTINGS, "2")
    assert not rolled_back_in(promotion.history(SETTINGS), "2")


def test_a_version_knows_the_one_that_was_in_production_when_it_was_made(store: Registry) -> None:
    store.put_into_production("a")
    store.register("b")
    assert store.client.get_model_version(SETTINGS.name, "1").tags["parent"] == "none"
    assert store.client.get_model_version(SETTINGS.name, "2").tags["parent"] == "1"


def test_manual_promotion_needs_somebody_who_approves(store: Registry) -> None:
    store.register("a")
    manual = RegistrySettings(promotion="manual")
    for nobody in (Approval(), Approval(why="it is small")):
        with pytest.raises(InputError, match=r"version 1 needs approval .*--approved-by NAME"):
            promotion.promote(manual, approval=nobody)
    assert "production" not in store.aliases()
    promotion.promote(manual, approval=Approval("ada"))
    assert store.aliases()["production"] == "1"


def test_any_version_that_was_in_production_can_be_restored_and_no_other(store: Registry) -> None:
    store.put_into_production("a", "b", "c")
    store.register("d")
    assert promotion.restore(SETTINGS, "1") == promotion.Move("1", "3", True)
    assert store.aliases() == {"candidate": "4", "production": "1", "previous": "3"}
    assert not promotion.restore(SETTINGS, "1").changed
    with pytest.raises(InputError, match=r"version 4 .* was never in production"):
        promotion.restore(SETTINGS, "4")
    with pytest.raises(InputError, match="has no version 9"):
        promotion.restore(SETTINGS, "9")


def test_a_version_judged_against_another_than_the_one_in_use_is_judged_anew(
    store: Registry,
) -> None:
    against = {"gates": [GATE]}
    store.register("a", **against, production=None)
    promotion.promote(SETTINGS)
    store.register("b", **against, production={"version": "1", "model": "a"})
    store.register("c", **against, production={"version": "1", "model": "a"})
    promotion.promote(SETTINGS, "2")
    with pytest.raises(
        InputError, match="version 3 was compared with version 1, and version 2 is in production"
    ):
        promotion.promote(SETTINGS, "3")
    promotion.restore(SETTINGS, "1")  # was compared with nothing, and needs no gates
    assert store.aliases()["production"] == "1"


@pytest.mark.parametrize("broken", ["/2", "@production"])
def test_a_model_that_does_not_work_does_not_stay_in_production(
    store: Registry, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    store.put_into_production("a")
    store.register("b")
    before = store.aliases()

    def smoke_test(uri: str) -> list[str]:
        if uri.endswith(broken):
            raise SmokeError(f"{uri} writes nothing")
        return ["a text"]

    monkeypatch.setattr(promotion, "smoke_tests", lambda store: nullcontext(smoke_test))
    said = "nothing was changed" if broken == "/2" else "the aliases were moved back"
    with pytest.raises(SmokeError, match=f"writes nothing: {said}"):
        promotion.promote(SETTINGS)
    assert store.aliases() == before
    assert len(promotion.history(SETTINGS)) == 1


@pytest.mark.parametrize("writes", range(6))
@pytest.mark.parametrize("move", [promotion.promote, promotion.rollback])
def test_a_move_that_was_killed_is_undone_or_done_and_never_half(
    store: Registry, monkeypatch: pytest.MonkeyPatch, writes: int, move: Any
) -> None:
    store.put_into_production("a")
    store.register("b")
    if move is promotion.rollback:
        promotion.promote(SETTINGS)
    before, told = store.aliases(), promotion.history(SETTINGS)

    done: list[str] = []

    def killed_at_the_write(name: str) -> Any:
        real = getattr(MlflowClient, name)

        def write(*arguments: str) -> None:
            if len(done) == writes:
                raise KeyboardInterrupt
            done.append(name)
            real(*arguments)

        return write

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, killed_at_the_write(name))
        if writes < 5:
            with pytest.raises(KeyboardInterrupt):
                move(SETTINGS)
        else:
            move(SETTINGS)  # has five writes
    promotion.undo_killed_move(SETTINGS)
    whole = promotion.history(SETTINGS)
    if len(whole) == len(told):
        assert store.aliases() == before
        move(SETTINGS)
    after = store.aliases()
    assert after["previous"] == before["production"]
    assert after["production"] == ("1" if move is promotion.rollback else "2")
    assert len(promotion.history(SETTINGS)) == len(told) + 1


def running(workspace: Workspace) -> Registry:
    """A registry whose models are loaded for real."""
    Path("mlflow/served_model.py").write_text(SERVED)
    workspace.set(registry={"name": SETTINGS.name})
    return Registry()


def test_the_smoke_test_loads_the_model_in_a_process_of_its_own(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    store = running(workspace)
    store.register("a")
    capfd.readouterr()
    for fault, message in (("broken", "the weights are unusable"), ("silent", "generates nothing")):
        Path(fault).touch()
        assert pruneflow_here("promote") == 2
        errors = capfd.readouterr().err
        assert errors.count("\n") == 1, errors
        assert message in errors and "nothing was changed" in errors
        Path(fault).unlink()
    assert store.aliases() == {"candidate": "1"}
    assert pruneflow_here("promote", "--approved-by", "ada", "--because", "it is small") == 0
    assert "version 1 of pruneflow is in production" in capfd.readouterr().out
    assert str(os.getpid()) not in [path.read_text() for path in Path().glob("loaded-*")]
    assert pruneflow_here("status") == 0
    status = capfd.readouterr().out
    assert "promotion of version 1" in status and "by ada (it is small)" in status


def test_after_kill_9_in_the_middle_the_next_command_makes_the_registry_whole(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    store = running(workspace)
    store.register("a")
    assert pruneflow_here("promote") == 0
    store.register("b")
    for path in Path().glob("loaded-*"):
        path.unlink()
    Path("slow").touch()
    with workspace.start("-m", "flows.cli", "promote") as process:
        assert wait_until(lambda: Path("loaded-1").exists())
        assert versions.status(SETTINGS)["production"]["version"] == "2"  # moved, not yet seen
        process.kill()
        os.kill(int(Path("loaded-1").read_text()), signal.SIGKILL)
    capfd.readouterr()
    assert pruneflow_here("status", "--json") == 0
    status = json.loads(capfd.readouterr().out)
    assert (status["production"]["version"], status["previous"]) == ("1", None)
    assert pruneflow_here("promote") == 0
    assert store.aliases() == {"candidate": "2", "production": "2", "previous": "1"}


def test_ten_promotions_at_once_end_with_one_production_and_a_true_previous(
    store: Registry, workspace: Workspace
) -> None:
    numbers = [store.register(f"model {number}") for number in range(10)]
    workspace.set(registry={"name": SETTINGS.name})
    done = workspace.do(PROMOTE_AT_ONCE, *(f"{each}={workspace.folder}" for each in numbers))
    assert done.returncode == 0, done.stderr
    told = promotion.history(SETTINGS)
    assert sorted(each["version"] for each in told) == sorted(numbers)
    assert [each["former"] for each in told] == [None, *(each["version"] for each in told[:-1])]
    assert store.aliases()["production"] == told[-1]["version"]
    assert store.aliases()["previous"] == told[-2]["version"]
