"""Every command in README and tutorial is run: here, or by the test that is named for it.

Quick commands run here, in this process and in a toy workspace with the project's own configs.
"""

import ast
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pruneflow.settings.pipeline import load_settings
from tasks.registry import promotion
from tests.markdown import ROOT, commands
from tests.pipeline.commands import pruneflow_here, repro
from tests.pipeline.registry import Registry
from tests.pipeline.toy import Workspace

PAGES = (ROOT / "docs/tutorial.md", ROOT / "README.md")

SETTINGS = [
    "source .venv/bin/activate",
    "pruneflow plan --ratio 0.1 --rounds 2",
    "pruneflow configure demo",
    "pruneflow plan --ratio 0.3 --rounds 6 --schedule geometric",
]
MOVES = [
    "pruneflow status",
    "pruneflow promote [VERSION]",
    "pruneflow rollback",
    "pruneflow restore VERSION",
]
STAGES = "dvc repro"
THESE_TESTS = "make test"  # is what runs this

# What takes longer, and the test that runs it.
ELSEWHERE = {
    "make demo": "pipeline/test_golden_run.py::test_the_main_job_on_real_weights",
    "make services": "pipeline/test_services.py::"
    "test_the_worker_runs_the_pipeline_and_survives_kills_and_all_stop_together",
    "pruneflow run": "pipeline/test_golden_run.py::test_the_main_job_on_real_weights",
    "pruneflow doctor": "unit/test_doctor.py::test_only_a_problem_makes_the_command_fail",
    "pruneflow compare A B": "pipeline/test_inspection.py::"
    "test_versions_are_compared_by_number_and_alias",
    "pruneflow serve": "pipeline/test_serving.py::"
    "test_production_is_served_and_the_next_promotion_after_a_restart",
    "pruneflow sweep": "pipeline/test_sweep_run.py::"
    "test_the_command_shows_the_table_and_exits_0_where_a_recipe_finished",
    "pruneflow gc": "pipeline/test_housekeeping.py::test_a_person_on_a_terminal_is_asked",
    "pruneflow data refresh": "unit/test_cli.py::"
    "test_refresh_pins_every_source_and_says_what_changed",
    "pruneflow data diff HEAD": "pipeline/test_data_versioning.py::"
    "test_the_data_is_pulled_bit_for_bit_and_a_diff_says_exactly_what_changed",
}


def test_every_documented_command_is_run_somewhere() -> None:
    shown = {command for page in PAGES for command in commands(page)}
    assert shown == {*SETTINGS, *MOVES, STAGES, THESE_TESTS, *ELSEWHERE}


@pytest.mark.parametrize("place", ELSEWHERE.values())
def test_the_test_that_is_named_for_a_command_exists(place: str) -> None:
    file, name = place.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def run_here(command: str, version: str = "") -> None:
    """Run a command in the current directory; it must end with exit code 0."""
    program, *arguments = shlex.split(command)
    if program == "source":
        activate = Path(sys.prefix, "bin/activate")
        lines = f"source {activate} && command -v pruneflow"
        subprocess.run(["bash", "-c", lines], check=True, capture_output=True)
        return
    arguments = [version if "VERSION" in each else each for each in arguments]
    assert pruneflow_here(*arguments) == 0, command


@pytest.mark.slow
def test_commands_about_settings_run_as_they_stand(workspace: Workspace) -> None:
    shutil.copytree(ROOT / "configs/profiles", "configs/profiles")
    for command in SETTINGS:
        run_here(command)
    settings = load_settings()
    assert settings.model.name == "SmolLM2-135M-Instruct"
    assert list(settings.rounds) == ["r1", "r2", "r3", "r4", "r5", "r6"]


@pytest.mark.slow
def test_a_second_dvc_repro_does_nothing(workspace: Workspace) -> None:
    assert set(repro()) == {"calibration", "round@r1", "round@r2", "select", "report"}
    assert repro() == []


@pytest.mark.slow
def test_commands_about_versions_run_as_they_stand(
    store: Registry, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.set(registry={"name": store.settings.name})
    promotion.promote(store.settings, store.register("one"))
    store.register("two")
    in_production = []
    for command in MOVES:
        run_here(command, version="2")
        in_production.append(store.aliases()["production"])
    assert in_production == ["1", "2", "1", "2"]
    assert "version 1" in capsys.readouterr().out
