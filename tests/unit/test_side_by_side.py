"""Two models side by side: paired where possible, with a note about what is not known."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from pruneflow.artifacts import write_json
from pruneflow.judge.model_comparison import Side, side_by_side
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.measure.latency_record import Speed
from pruneflow.records import write_record
from pruneflow.report.comparison_table import NOT_MEASURABLE
from pruneflow.report.model_comparison_table import NOT_MEASURED, side_table
from pruneflow.settings.pipeline import EvaluationSettings, parse_settings, write_settings
from tests.unit.evaluation_example import summary
from tests.unit.report_example import evaluation

SETTINGS = EvaluationSettings(bootstrap_samples=100)
WORDS = {
    "model": {"name": "toy", "source": "dense"},
    "documents": {"domains": ["law"]},
    "rounds": {"r1": {"parent": "dense", "ratio": 0.1}, "r2": {"parent": "r1", "ratio": 0.2}},
    "final_round": "r2",
}
RATE = {"median": 2.0, "low": 1.0, "high": 3.0, "min": 0.5, "max": 4.0}
FIRST = {"median": 0.5, "low": 0.4, "high": 0.6, "min": 0.3, "max": 0.7}
SPEED = {"prefill": RATE, "decode": RATE, "first_token": FIRST}


def measured(which: int, digest: str, **changes: str) -> dict[str, Any]:
    found = evaluation(which, digest, 1000 - 100 * which, 800 - 100 * which, (130, 100))
    return {**found, **changes}


def side(name: str, which: int | None = None, **known: Any) -> Side:
    found = None if which is None else Evaluation.model_validate(measured(which, name))
    return Side(name, f"version {name}", {"parameters": 1000}, evaluation=found, **known)


def test_two_evaluated_models_are_compared_in_pairs() -> None:
    a = side("1", 0, settings={"x": "1", "y": "2"})
    b = side("2", 1, settings={"x": "1", "y": "3"})
    found = side_by_side(a, b, SETTINGS)
    law = found.perplexity.domains["law"]
    assert (law.a, law.b) == (pytest.approx(9.12), pytest.approx(12.01))
    assert law.ratio["value"] == pytest.approx(12.01 / 9.12)
    assert law.ratio["low"] <= law.ratio["value"] <= law.ratio["high"]
    assert found.tasks["piqa"].retention["value"] == pytest.approx(1.0)
    assert found.to_json()["settings"] == {"y": {"a": "2", "b": "3"}}


def test_what_was_not_measured_is_said() -> None:
    a, b = side("1", 0, speed=Speed.model_validate(SPEED)), side("2")
    found = side_by_side(a, b, SETTINGS)
    assert found.perplexity.domains["law"].b is None
    assert found.perplexity.domains["law"].ratio is None
    assert found.speed["decode"].b is None
    (said,) = [note for note in found.notes if note.startswith("not measured for version 2")]
    assert "test text" in said and "speed" in said
    console = Console(width=80)
    with console.capture() as shown:
        console.print(side_table(found))
    assert NOT_MEASURED in shown.get()
    assert max(map(len, shown.get().splitlines())) <= 80


def test_models_measured_on_other_text_have_no_ratio_and_a_reason() -> None:
    other = Evaluation.model_validate(measured(1, "2", held_out="another"))
    found = side_by_side(side("1", 0), replace(side("2"), evaluation=other), SETTINGS)
    assert found.perplexity.domains["law"].ratio is None
    assert found.perplexity.mean_ratio is None
    assert any("held-out text" in note for note in found.notes)
    shown = Console(width=80, record=True, file=io.StringIO())
    shown.print(side_table(found))
    assert NOT_MEASURABLE not in shown.export_text()  # the tasks are; these two are not comparable


HEALTHY = {"healthy": True, "reasons": [], "reason": "No limit is broken."}


def loss(value: float) -> dict[str, Any]:
    return {"law": {"nll": 1.0, "tokens": 1, "perplexity": value}}


@pytest.fixture
def rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of two rounds, the second of which is delivered and evaluated."""
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("stages: {}\n")
    Path("configs").mkdir()
    write_settings(parse_settings(WORDS, Path("test")))
    dense = {"digest": "d", "block_weights": 800, "neurons": 8}
    common = {"status": "done", "delivered_digest": "r2", "dense": dense, "block_weights": 700}
    for place, (name, value) in enumerate({"dense": 0, "r1": 11.0, "r2": 12.0}.items()):
        record = {**common, "round": name, "delivered": name, "parameters": 1000 - 100 * place}
        record["digest"] = "d" if name == "dense" else name
        if name != "dense":
            record["health"] = {**HEALTHY, "kl": value / 100, "mean_ratio": value / 10}
            record["validation"] = {"dense": loss(10.0), "pruned": loss(value)}
            record |= {"layout": "uniform", "score": "mask_fisher", "refit": "least_squares"}
        folder = Path("data/checkpoints") / name
        folder.mkdir(parents=True)
        write_json(folder / "round.json", record)
        (folder / "model.safetensors").write_bytes(bytes(10 - place))
    reports = Path("data/reports")
    reports.mkdir()
    write_json(reports / "baseline.json", measured(0, "d"))
    write_json(reports / "evaluation.json", measured(1, "r2"))
    made_up = summary()
    digests = made_up.digests.model_copy(update={"dense": "d", "pruned": "r2"})
    latency = {**made_up.latency.to_json(), "dense": SPEED, "pruned": SPEED}
    write_record(reports / "summary.json", summary(digests=digests, latency=latency))
    return tmp_path


def compare(*names: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["compare", *names, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_rounds_are_compared_on_the_text_they_were_checked_on(rounds: Path) -> None:
    found = compare("r1", "r2")
    assert found["validation"]["law"] == {"a": 11.0, "b": 12.0}
    assert found["health"]["kl"] == {"a": 0.11, "b": 0.12}
    assert found["size"]["bytes"] == {"a": 9, "b": 8}
    assert found["digests"]["model"] == {"a": "r1", "b": "r2"}
    assert found["digests"]["dense model"] == {"a": "d", "b": "d"}
    law = found["perplexity"]["domains"]["law"]
    assert law["a"] is None and law["b"] == pytest.approx(12.01)
    assert any(note.startswith("not measured for round r1") for note in found["notes"])


def test_the_dense_model_has_the_baseline_and_the_reference_of_every_round(rounds: Path) -> None:
    found = compare("dense", "r2")
    assert found["validation"]["law"] == {"a": 10.0, "b": 12.0}
    assert found["health"]["kl"] == {"a": 0.0, "b": 0.12}
    assert found["perplexity"]["domains"]["law"]["ratio"]["value"] == pytest.approx(12.01 / 9.12)
    assert found["speed"]["decode"]["a"]["median"] == 2.0


def test_a_recovered_model_is_not_given_what_its_round_was_before(rounds: Path) -> None:
    record = json.loads(Path("data/checkpoints/r2/round.json").read_text())
    Path("data/model").mkdir()
    record |= {"digest": "recovered", "recovered_from": "r2"}
    write_json(Path("data/model/round.json"), record)
    Path("data/model/model.safetensors").write_bytes(bytes(8))
    found = compare("r2", "model")
    assert found["validation"]["law"] == {"a": 12.0, "b": None}
    assert found["health"]["kl"] == {"a": 0.12, "b": None}


def test_a_report_about_another_model_does_not_count(rounds: Path) -> None:
    write_json(Path("data/reports/evaluation.json"), measured(1, "another"))
    assert compare("dense", "r2")["perplexity"]["domains"]["law"]["b"] is None


@pytest.mark.parametrize(
    ("name", "said"),
    [("r9", "there is no model r9"), ("3", "no version yet"), ("production", "no version yet")],
)
def test_an_unknown_model_is_one_line(name: str, said: str, rounds: Path) -> None:
    done = CliRunner().invoke(app, ["compare", "r1", name])
    assert said in str(done.exception)


def test_a_skipped_round_names_the_one_that_is_delivered(rounds: Path) -> None:
    file = Path("data/checkpoints/r2/round.json")
    record = {**json.loads(file.read_text()), "status": "skipped", "delivered": "r1"}
    write_json(file, record)
    done = CliRunner().invoke(app, ["compare", "r1", "r2"])
    assert "r2 was skipped" in str(done.exception) and "compare r1" in str(done.exception)
