"""Workspaces for the tests of the pipeline: toys, tiny models, a server for both, a webhook."""

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

from pruneflow.plan import plan_rounds
from pruneflow.settings.pipeline import RegistrySettings, parse_settings, write_settings
from pruneflow.settings.pruning import Target
from tasks.dvc.repro import stage_order
from tasks.registry import promotion
from tasks.tracking.store import connect
from tests.pipeline.commands import make
from tests.pipeline.registry import Registry
from tests.pipeline.tiny import RECOVERY, SMALL, STAGES
from tests.pipeline.toy import Workspace, toy_workspace
from tests.servers import Webhook, listening


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A Prefect server for flows that run in this process; yields its PREFECT_API_URL.

    All tests share it: a process caches a concurrency limit of the first server it talks to.
    """
    with prefect_test_harness(server_startup_timeout=120):
        yield str(get_current_settings().api.url)


@pytest.fixture
def on_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands use the server of this session instead of starting one each."""
    monkeypatch.setenv("PREFECT_API_URL", server)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    toy = toy_workspace(tmp_path / "workspace", tmp_path / "prefect")
    monkeypatch.chdir(toy.folder)
    return toy


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(RegistrySettings(tracking_uri=f"sqlite:///{file}"))
    return file


@pytest.fixture
def store(workspace: Workspace, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry whose models all pass the smoke test; test_promotion.py has others."""
    shutil.copy(empty_store, "mlflow/mlflow.db")
    monkeypatch.setattr(promotion, "smoke_tests", lambda store: nullcontext(lambda uri: ["a text"]))
    return Registry()


@pytest.fixture
def tiny_pipeline(
    real_workspace: Path, tiny_model_directory: Path
) -> Callable[..., dict[str, Any]]:
    """Settings of a whole pipeline on a tiny model and Python's own text, nothing run yet."""

    def write(rounds: int = 3, **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            **copy.deepcopy(SMALL),
            "model": {"source": str(tiny_model_directory), "dtype": "float32"},
            "documents": {"domains": ["code", "technical"], "max_per_domain": 40},
            "rounds": plan_rounds(Target(ratio=0.1 * rounds), rounds, "linear"),
            "final_round": f"r{rounds}",
            **changes,
        }
        write_settings(parse_settings(values, Path("test")))
        return values

    write()
    return write


@pytest.fixture
def finished_pipeline(
    tiny_pipeline: Callable[..., dict[str, Any]],
    real_workspace: Path,
    tiny_model_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """A finished tiny pipeline of two rounds and recovery; returns its settings.

    Its stages run once, in this process, where the imports are paid for; each test gets a copy.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # of all processes of this session
    shared, model = place / "finished", place / "finished-model"
    with FileLock(f"{shared}.lock"):
        if not model.exists():
            shutil.copytree(tiny_model_directory, model)
        values = tiny_pipeline(
            rounds=2, recovery=RECOVERY, model={"source": str(model), "dtype": "float32"}
        )
        if not shared.exists():
            assert sorted(stage_order()) == sorted(["environment", *STAGES])
            make("environment", *STAGES)
            shutil.copytree(real_workspace, f"{shared}.new")
            Path(f"{shared}.new").rename(shared)
    shutil.copytree(shared, real_workspace, dirs_exist_ok=True)
    return values


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with listening() as hook:
        yield hook
