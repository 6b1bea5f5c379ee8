"""dvc.yaml against the code: every stage depends on what it runs, and on nothing else."""

from pathlib import Path

import pytest
import yaml

from tests.unit.import_closure import closure

GRAPH = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
STAGES_FILE = Path("pruneflow/stages.py")
# Files whose change is no other result, and why.
NO_OTHER_RESULT = {
    "pruneflow/errors.py": "messages",
    "pruneflow/paths.py": "where files are: dvc.yaml names them, too",
    "pruneflow/progress.py": "bars",
    "pruneflow/artifacts.py": "writing and checking of files",
    "pruneflow/records.py": "reading and checking of records",
    "pruneflow/workspace.py": "locks",
    "pruneflow/settings": "the values of settings are params",
    "pruneflow/compute": "tests prove placements and ranks to give the same result",
}
# README.md is no part of a model's digest.
CARD = {stage: ["pruneflow/report/directory_card.py"] for stage in ("model", "round", "select")}


def is_in(file: Path, places: list[str]) -> bool:
    return any(file.is_relative_to(place) for place in places)


@pytest.mark.parametrize("stage", GRAPH)
def test_a_stage_depends_on_the_code_that_it_runs_and_on_no_other(stage: str) -> None:
    """Speed depends on the placement as well, but `latency` is measured, not reproduced."""
    ignored = [*NO_OTHER_RESULT, *CARD.get(stage, [])]
    function = "round_" if stage == "round" else stage
    reached = closure(STAGES_FILE, function, lambda file: is_in(file, ignored))
    described = GRAPH[stage].get("do", GRAPH[stage])["deps"]
    deps = [dep for dep in described if dep.startswith("pruneflow/")]
    assert not [str(file) for file in reached if not is_in(file, deps)], "missing in dvc.yaml"
    idle = [dep for dep in deps if not any(is_in(file, [dep]) for file in reached)]
    assert not idle, "not run by this stage"


def test_params_leave_out_what_changes_no_result() -> None:
    for name, stage in GRAPH.items():
        sections = stage.get("do", stage).get("params", [])
        named = [key for section in sections for keys in section.values() for key in keys]
        if name not in ("latency", "report"):  # speed, and a page that shows all settings
            assert not {"compute", "compute.placement", "compute.processes"} & set(named), name
