"""What DVC shows: flat figures, and plots whose fields the report stage writes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from pruneflow.models.round_record import RoundRecord
from pruneflow.paths import METRICS, PLOTS
from pruneflow.report.dvc_plots import headline, series
from tests.unit.report_example import ROUNDS, summarise

GRAPH = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())
WIDTHS = {"heads": [9, 9], "kv_groups": [3, 3], "neurons": [1376, 1248]}
DONE = [RoundRecord.model_validate({**record, "widths": WIDTHS}) for record in ROUNDS]
SKIPPED = DONE[2].model_copy(update={"round": "r4", "status": "skipped"})


def test_the_headline_is_flat_and_leaves_out_what_is_not_measurable() -> None:
    summary = summarise()
    figures = headline(summary)
    assert all(isinstance(value, (int, float)) for value in figures.values())
    assert figures["parameters"] == 112_926_000
    assert figures["decode_speedup"] == 1.19
    assert figures["task_retention"] == summary.mean_retention["value"]
    assert "task_retention" not in headline(summary.model_copy(update={"mean_retention": None}))


def test_rounds_start_at_the_dense_model_and_leave_out_skipped_ones() -> None:
    tables = series(summarise(), [*DONE, SKIPPED])
    assert [point["round"] for point in tables["rounds"]] == ["dense", "r1", "r2", "r3"]
    assert tables["rounds"][0]["mean_ratio"] == 1.0
    assert tables["rounds"][3]["mean_ratio"] == DONE[2].health.mean_ratio
    assert tables["widths"][-1] == {
        "round": "r3",
        "layer": 1,
        "heads": 9,
        "kv_groups": 3,
        "neurons": 1248,
    }


def test_domains_are_sorted_by_loss_largest_first() -> None:
    ratios = [point["ratio"] for point in series(summarise(), DONE)["domains"]]
    assert ratios == sorted(ratios, reverse=True) and len(ratios) > 1


@pytest.mark.parametrize("plot", GRAPH["plots"], ids=lambda plot: next(iter(plot)))
def test_every_plot_of_dvc_finds_its_fields(plot: dict[str, Any]) -> None:
    (drawn,) = plot.values()
    ((file, field),) = drawn["y"].items()
    assert Path(file).parent == PLOTS
    points = series(summarise(), DONE)[Path(file).stem]
    assert all({drawn["x"], field} <= point.keys() for point in points)


def test_what_dvc_shows_is_an_out_of_the_report() -> None:
    stage = GRAPH["stages"]["report"]
    assert PLOTS.as_posix() in stage["outs"]
    assert stage["metrics"] == [METRICS.as_posix()]
