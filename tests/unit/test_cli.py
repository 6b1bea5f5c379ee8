"""The command line answers at once and says what is wrong in one line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import app

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


@pytest.mark.parametrize("command", [command.callback for command in app.registered_commands])
def test_every_command_shows_an_example(command) -> None:
    assert "Example: pruneflow " in (command.__doc__ or "")


@pytest.mark.parametrize("command", ["run", "status", "promote", "rollback"])
def test_outside_a_project_folder_every_command_says_so(command: str, tmp_path: Path) -> None:
    done = pruneflow(tmp_path, command)
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
