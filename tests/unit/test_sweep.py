"""What recipes of a sweep are, and which of them no other beats."""

import io
import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pruneflow.errors import InputError
from pruneflow.judge.intervals import Estimate
from pruneflow.judge.pareto import Figures, costs, figures_of, pareto_front, pareto_table
from pruneflow.report.sweep_table import sweep_rows, sweep_table
from pruneflow.settings.pipeline import PipelineSettings, load_settings
from pruneflow.sweep_recipes import load_recipes
from tests.unit.report_example import summarise

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base() -> PipelineSettings:
    return load_settings(ROOT / "configs/pipeline.yaml")


def recipes(folder: Path, base: PipelineSettings, **given: object) -> dict[str, PipelineSettings]:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({"recipes": given}))
    return load_recipes(base, file)


def test_the_committed_recipes_fit_the_committed_pipeline(base: PipelineSettings) -> None:
    found = load_recipes(base, ROOT / "configs/sweep.yaml")
    assert found["as_it_is"] == base
    assert len(found) == len({each.model_dump_json() for each in found.values()})


def test_a_recipe_changes_what_it_names_and_nothing_else(
    tmp_path: Path, base: PipelineSettings
) -> None:
    found = recipes(
        tmp_path,
        base,
        deep={"ratio": 0.4, "rounds": 2, "schedule": "geometric"},
        slow={"rounds": 5},
        wide={"layout": "per_layer"},
        other={"overrides": {"pruning.towards_dense": 0.1, "latency.repeats": 9}},
    )
    deep, slow, other = found["deep"], found["slow"], found["other"]
    assert [planned.ratio for planned in deep.rounds.values()] == [pytest.approx(0.225403), 0.4]
    assert deep.final_round == "r2"
    assert [round(planned.ratio or 0, 3) for planned in slow.rounds.values()] == [
        0.04,
        0.08,
        0.12,
        0.16,
        0.2,
    ]
    assert found["wide"].pruning.layout == "per_layer"
    assert (other.pruning.towards_dense, other.latency.repeats) == (0.1, 9)
    assert other.rounds == base.rounds
    for each in found.values():
        assert each.documents == base.documents and each.evaluation == base.evaluation


def test_domains_are_calibrated_on_alone_in_the_proportions_they_had(
    tmp_path: Path, base: PipelineSettings
) -> None:
    names = base.documents.domains
    rest = 0.4 / (len(names) - 2)
    weights = {**dict.fromkeys(names, rest), names[0]: 0.4, names[1]: 0.2}
    weighed = base.model_copy(
        update={"calibration": base.calibration.model_copy(update={"weights": weights})}
    )
    (plain,) = recipes(tmp_path, base, part={"domains": names[:2]}).values()
    assert plain.calibration.domains == names[:2] and plain.calibration.weights == {}
    assert plain.documents.domains == names
    (part,) = recipes(tmp_path, weighed, part={"domains": names[:2]}).values()
    assert list(part.calibration.weights.values()) == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"ratoi": 0.2}, "unknown key recipes.bad.ratoi"),
        ({"ratio": 1.2}, r"recipes.bad.ratio is 1.2"),
        ({"rounds": 0}, "recipes.bad.rounds is 0"),
        ({"ratio": 0.2, "bytes": 9}, "give at most one of ratio, parameters and bytes"),
        ({"schedule": "cosine"}, "recipes.bad.schedule is 'cosine'"),
        ({"domains": ["poetry"]}, "recipe bad: calibration.domains names poetry"),
        ({"overrides": {"pruning.refti": "none"}}, "recipe bad: unknown key pruning.refti"),
        ({"overrides": {"prunning.refit": "none"}}, "recipe bad: unknown key prunning"),
        ({"overrides": {"final_round.name": 1}}, "recipe bad: unknown key final_round.name"),
        ({"overrides": {"latency.repeats": 2}}, "recipe bad: latency.repeats is 2"),
    ],
)
def test_a_wrong_recipe_is_one_line_with_file_and_key(
    tmp_path: Path, base: PipelineSettings, recipe: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        recipes(tmp_path, base, good={}, bad=recipe)
    assert str(raised.value).startswith(f"{tmp_path}/sweep.yaml")
    assert "\n" not in str(raised.value)


def test_a_sweep_without_recipes_is_refused(tmp_path: Path, base: PipelineSettings) -> None:
    with pytest.raises(InputError, match=r"sweep.yaml: recipes is \{\}"):
        recipes(tmp_path, base)
    with pytest.raises(InputError, match=r"absent.yaml is missing"):
        load_recipes(base, tmp_path / "absent.yaml")


COSTS = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2), st.tuples(*[st.integers(0, 4)] * 3), min_size=1
)


@given(COSTS)
def test_the_front_beats_all_others_and_none_of_it_beats_another(
    points: dict[str, tuple[int, ...]],
) -> None:
    def beats(one: str, other: str) -> bool:
        pairs = list(zip(points[one], points[other], strict=True))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    front = pareto_front(points)
    assert front
    assert not any(beats(one, other) for one, other in itertools.permutations(front, 2))
    assert all(any(beats(one, name) for one in front) for name in set(points) - front)


def test_equal_recipes_are_both_optimal() -> None:
    assert pareto_front({"one": (1.0, 2.0), "other": (1.0, 2.0)}) == {"one", "other"}


def figures(perplexity: float, parameters: int, prefill: float, decode: float) -> Figures:
    def exactly(value: float) -> Estimate:
        return {"value": value, "low": value, "high": value}

    return {
        "digest": "d",
        "delivered": "r1",
        "parameters": parameters,
        "block_ratio": 0.2,
        "perplexity_ratio": exactly(perplexity),
        "task_retention": None,
        "prefill": exactly(prefill),
        "decode": exactly(decode),
    }


def test_a_recipe_is_optimal_for_what_it_keeps_for_its_size_or_for_its_speed() -> None:
    found = {
        "keeps": figures(1.1, 100, 1.0, 1.0),
        "small": figures(1.5, 50, 1.0, 1.0),
        "quick": figures(1.5, 100, 1.2, 1.5),
        "worse": figures(1.5, 100, 1.2, 1.4),
    }
    rows = pareto_table(found, {"broken": "the disk is full"})
    assert [(row["recipe"], row["pareto"]) for row in rows] == [
        ("keeps", True),
        ("quick", True),
        ("small", True),
        ("worse", False),
        ("broken", False),
    ]
    assert rows[-1]["figures"] is None and rows[-1]["error"] == "the disk is full"


def test_speed_is_the_mean_of_both_phases_so_that_either_may_pay_for_the_other() -> None:
    assert costs(figures(1.0, 1, 2.0, 0.5))[2] == pytest.approx(1.0)


def test_figures_are_those_of_the_summary() -> None:
    found = summarise()
    figures = figures_of(found)
    assert figures["parameters"] == found.parameters.pruned
    assert figures["perplexity_ratio"] == found.perplexity.mean_ratio
    assert figures["decode"]["value"] == found.latency.speedup.decode["median"]


def test_the_table_fits_80_columns_and_says_why_a_recipe_failed() -> None:
    rows = pareto_table({"per_layer": figures_of(summarise())}, {"broken": "the [disk] is full"})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sweep_table(rows))
    text = console.export_text()
    assert "per_layer *" in text and "broken failed: the [disk] is full" in text
    assert "\u2026" not in text
    lines = sweep_rows(rows)
    failed = {**dict.fromkeys(lines[0], ""), "recipe": "broken", "error": "the [disk] is full"}
    assert lines[1] == failed
