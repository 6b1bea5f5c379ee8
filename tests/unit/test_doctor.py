"""The doctor finds what would stop a run, names the fix, and continues with the next check."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from dvc.repo import Repo
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from flows.cli import app
from pruneflow import footprint
from pruneflow.errors import InputError
from pruneflow.models import loading
from pruneflow.models.source import source_parameters
from pruneflow.settings.pipeline import ModelSettings, load_settings
from tasks.doctor import checks, installed_versions
from tasks.doctor.checks import CHECKS, OK, PROBLEM, WARNING, CheckResult, diagnose
from tasks.dvc import remote as dvc_remote

REPOSITORY = Path(__file__).parents[2]
PROJECT = """
[project]
requires-python = ">=3.11"
dependencies = ["typer>=0.1", "rich>=9000", "not-there-at-all>=1"]
"""


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Leave some of the checks."""

    def choose(*names: str) -> None:
        monkeypatch.setattr(checks, "CHECKS", {name: CHECKS[name] for name in names})

    return choose


def test_a_run_without_any_server_is_a_problem() -> None:
    off = {PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}
    with (
        temporary_settings(off, restore_defaults={PREFECT_API_URL}),
        pytest.raises(InputError, match="ALLOW_EPHEMERAL_MODE is false"),
    ):
        found("prefect")


def test_a_check_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Iterator[checks.Result]:
        raise KeyError("getpwuid(): uid not found: 54321")
        yield

    def succeed() -> Iterator[checks.Result]:
        yield OK, "well"

    monkeypatch.setattr(checks, "CHECKS", {"first": fail, "second": succeed})
    assert list(diagnose()) == [
        CheckResult(
            "first", PROBLEM, "this check failed (KeyError: 'getpwuid(): uid not found: 54321')"
        ),
        CheckResult("second", OK, "well"),
    ]


def found(name: str) -> list[tuple[str, str]]:
    return list(CHECKS[name]())


def test_a_sound_project_has_nothing_to_fix(project: Path, only: Callable[..., None]) -> None:
    only("folder", "settings", "gates", "domains", "sweep", "model", "sources")
    findings = list(diagnose())
    assert [finding.check for finding in findings] == list(checks.CHECKS)
    assert {finding.status for finding in findings} == {OK}, findings


def test_what_is_broken_is_told_once_and_does_not_hide_the_rest(
    project: Path, only: Callable[..., None]
) -> None:
    only("settings", "domains", "gates", "model")
    Path("configs/pipeline.yaml").write_text("models: {source: x}\n")
    settings, domains, gates, model = diagnose()
    assert settings.status == PROBLEM and "unknown key models" in settings.message
    assert domains.status == model.status == WARNING and "not checked" in domains.message
    assert gates.status == OK


@pytest.mark.parametrize(
    ("file", "check", "status"),
    [
        ("configs/gates.yaml", "gates", PROBLEM),
        ("configs/domains.yaml", "domains", PROBLEM),
        ("configs/sweep.yaml", "sweep", WARNING),
    ],
)
def test_each_file_of_settings_is_read(
    file: str, check: str, status: str, project: Path, only: Callable[..., None]
) -> None:
    only(check)
    Path(file).write_text("wrong: {really: true}\n")
    (finding,) = diagnose()
    assert finding.status == status and file in finding.message


def test_packages_are_compared_with_the_project_and_the_lock(project: Path) -> None:
    Path("pyproject.toml").write_text(PROJECT)
    typer = installed_versions.metadata.version("typer")
    Path("requirements.lock").write_text(
        f"typer=={typer} ; python_version >= '3' \\\n    --hash=sha256:00\n"
        "typer==0.0.1 ; python_version < '3'\n"
    )
    compared = installed_versions.compare_packages()
    assert compared.installed["typer"] == typer
    assert [line.split()[0] for line in compared.wrong] == ["rich", "not-there-at-all"]
    assert compared.unlocked == []

    Path("requirements.lock").write_text("typer==0.0.1\n")
    assert installed_versions.compare_packages().unlocked == [
        f"typer is {typer}, and requirements.lock has ==0.0.1"
    ]


def test_another_python_than_the_project_needs_is_a_problem(
    project: Path, only: Callable[..., None]
) -> None:
    only("python")
    Path("pyproject.toml").write_text(PROJECT.replace(">=3.11", ">=4"))
    (finding,) = diagnose()
    assert finding.status == PROBLEM and "make setup" in finding.message


def test_the_project_s_own_lock_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert installed_versions.compare_packages().installed["torch"]


def test_changed_and_unpinned_sources_must_be_mended(project: Path) -> None:
    lock = json.loads(Path("data/sources.lock").read_text())
    first = sorted(lock["files"])[0]
    lock["files"][first] = "0" * 64
    lock["python"] = "2.7.18"
    Path("data/sources.lock").write_text(json.dumps(lock))
    (python, another), (files, differ) = found("sources")
    assert (python, files) == (WARNING, PROBLEM)
    assert "another Python" in another and first in differ and "data refresh" in differ


def test_disk_is_measured_against_the_model_and_its_rounds(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "source_parameters", lambda model: 10**9)
    settings = load_settings()
    needed = footprint.footprint(settings, "float32")
    assert needed is not None
    # Two bytes a weight; dense, three rounds, delivered, being written, registered.
    assert needed.disk_least == 6 * 2 * 10**9
    assert needed.disk_most == 15 * 2 * 10**9
    assert needed.memory > 8 * 10**9
    for free, status in ((11, PROBLEM), (20, WARNING), (31, OK)):
        usage = shutil._ntuple_diskusage(10**12, 0, free * 10**9)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        ((said, _),) = found("disk")
        assert said == status


def test_a_temporary_folder_smaller_than_the_model_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "source_parameters", lambda model: 10**9)
    for free, refused in ((1.9e9, True), (2.1e9, False)):
        usage = shutil._ntuple_diskusage(10**12, 0, free)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        words = r"has 1\.9 GB free, and registering a model takes 2\.0 GB: .*TMPDIR"
        with pytest.raises(InputError, match=words) if refused else nullcontext():
            footprint.check_temporary_folder(load_settings())


def test_a_cache_of_symbolic_links_is_refused(project: Path) -> None:
    Repo.init(no_scm=True).close()
    assert found("cache") == [(OK, "DVC's cache.type is reflink,copy")]
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n[cache]\n    type = symlink\n")
    with pytest.raises(InputError, match=r"allows symlink.*`dvc checkout --relink`"):
        found("cache")


@pytest.mark.parametrize(
    ("device", "free", "placement", "level", "advice"),
    [
        ("cpu", 9e9, "auto", OK, "free, a run needs about"),
        ("cpu", 1e9, "auto", WARNING, "lower compute.batch_tokens"),
        ("cuda", 9e9, "whole", OK, "GPU memory free, a run needs about"),
        ("cuda", 1e9, "whole", WARNING, "set compute.placement to auto"),
        ("cuda", 1e9, "auto", OK, "models are spread or streamed"),
    ],
)
def test_too_little_memory_is_told_of_where_nothing_makes_do_with_it(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    free: float,
    placement: str,
    level: str,
    advice: str,
) -> None:
    monkeypatch.setattr(loading, "resolve_device", lambda _compute: device)
    monkeypatch.setattr(loading, "supports_bfloat16", lambda _device: False)
    monkeypatch.setattr(footprint, "source_parameters", lambda model: 135_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free), 0))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(free)))
    read = load_settings()
    compute = read.compute.model_copy(update={"placement": placement})
    settings = read.model_copy(update={"compute": compute})
    monkeypatch.setattr(checks, "load_settings", lambda: settings)
    [(found, said)] = CHECKS["memory"]()
    assert found == level
    assert advice in said


def test_weights_are_counted_without_loading_them(
    tiny_model_directory: Path, project: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_directory)
    counted = source_parameters(ModelSettings(source=str(tiny_model_directory)))
    assert counted == sum(parameter.numel() for parameter in model.parameters())
    hub = ModelSettings(source="someone/something", revision="0" * 40)
    assert source_parameters(hub) is None


def test_a_remote_that_cannot_be_written_is_said_before_a_run(project: Path) -> None:
    Repo.init(str(project), no_scm=True).close()
    config = project / ".dvc/config"
    config.write_text("[core]\n    no_scm = true\n    analytics = false\n")
    problem, _ = dvc_remote.probe_remote()
    assert problem is not None and "dvc remote add" in problem
    ((status, said),) = found("remote")
    assert status == WARNING and "registry.push" in said

    (project / "occupied").write_text("a file")
    remote = "    remote = store\n['remote \"store\"']\n    url = ../{}\n"
    start = config.read_text()
    config.write_text(start + remote.format("occupied"))
    problem, _ = dvc_remote.probe_remote()
    assert problem is not None and "occupied" in problem
    config.write_text(start + remote.format("store"))
    assert dvc_remote.probe_remote()[0] is None
    assert not (project / "store").exists(), "looking made a folder"


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (WARNING, 0), (PROBLEM, 2)])
def test_only_a_problem_makes_the_command_fail(
    status: checks.Status, code: int, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> Iterator[checks.Result]:
        yield status, "a state: its fix"

    monkeypatch.setattr(checks, "CHECKS", {"thing": look})
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == code
    assert shown.stdout.splitlines()[0].split(maxsplit=2) == [
        status,
        "thing",
        "a state: its fix",
    ]
    told: dict[str, Any] = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert told["ok"] == (code == 0)
    assert CheckResult(**told["findings"][0]).message == "a state: its fix"
