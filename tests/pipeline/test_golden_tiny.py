"""The real graph on a tiny model: `dvc repro` does what is needed, and no more."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pruneflow.__main__ import main
from pruneflow.models.digests import model_digest
from pruneflow.models.round_record import read_round_record
from pruneflow.settings.pipeline import parse_settings, write_settings
from tests.pipeline.commands import contents, pruneflow_here, repro, run

pytestmark = pytest.mark.slow


def test_only_what_changed_is_done_again(finished_pipeline):
    summary = json.loads(Path("data/reports/summary.json").read_text())
    assert summary["digests"]["pruned"] == model_digest(Path("data/model"))
    assert repro() == []

    digests = {name: model_digest(Path("data/checkpoints") / name) for name in ("r1", "r2")}
    values = finished_pipeline
    values["rounds"]["r2"]["ratio"] = 0.3
    write_settings(parse_settings(values, "test"))
    assert repro("evaluation") == ["round@r2", "select", "evaluation"]
    assert model_digest(Path("data/checkpoints/r1")) == digests["r1"]
    assert model_digest(Path("data/checkpoints/r2")) != digests["r2"]

    # From two rounds to one: it is delivered, the leftover second is not.
    values["rounds"].pop("r2")
    values["final_round"] = "r1"
    write_settings(parse_settings(values, "test"))
    assert repro("select") == ["select"]
    assert read_round_record(Path("data/model")).recovered_from == digests["r1"]
    assert Path("data/checkpoints/r2").is_dir()

    # One domain more: everything from the documents on, but not the dense model.
    values["documents"]["domains"].append("maths")
    write_settings(parse_settings(values, "test"))
    more = repro("round@r1")
    assert "documents" in more and "round@r1" in more and "model" not in more


def _spoil_model(values):
    values["model"]["source"] = "./no/such/model"
    return "model.source: ./no/such/model does not exist"


def _spoil_family(values):
    other = Path("other-model")
    shutil.copytree(values["model"]["source"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    values["model"]["source"] = str(other)
    return "models of type mamba are not supported: use one of gemma2, gemma3_text"


def _spoil_domain(values):
    domains = yaml.safe_load(Path("configs/domains.yaml").read_text())
    domains["mine"] = [{"kind": "files", "licence": "CC0-1.0", "files": ["data/text/mine/*.txt"]}]
    Path("configs/domains.yaml").write_text(yaml.safe_dump(domains))
    values["documents"]["domains"].append("mine")
    return "mine"


def _spoil_empty_domain(values):
    message = _spoil_domain(values)
    Path("data/text/mine").mkdir(parents=True)
    Path("data/text/mine/a.txt").write_text("")
    return message


def _spoil_length(values):
    values["calibration"]["sequences"] = 1_000_000
    return "calibration sequences"


def _spoil_output(values):
    shutil.rmtree("data/calibration")
    Path("data/calibration").write_text("in the way")
    return "data/calibration"


@pytest.mark.parametrize(
    ("spoil", "stage"),
    [
        (_spoil_model, "model"),
        (_spoil_family, "model"),
        (_spoil_domain, "documents"),
        (_spoil_empty_domain, "documents"),
        (_spoil_length, "calibration"),
        (_spoil_output, "documents"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_lost(
    finished_pipeline, spoil, stage, monkeypatch, capfd
):
    words = spoil(finished_pipeline)
    write_settings(parse_settings(finished_pipeline, "test"))
    before = contents(Path("data"))
    monkeypatch.setattr(sys, "argv", ["pruneflow", "stage", stage])
    capfd.readouterr()
    assert main() == 2
    said = capfd.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]
    assert "Traceback" not in said.err + said.out
    assert contents(Path("data")) == before


def test_a_run_that_is_bad_input_ends_with_exit_code_2_and_one_line(tiny_pipeline, capfd):
    values = tiny_pipeline()
    words = _spoil_model(values)
    write_settings(parse_settings(values, "test"))
    capfd.readouterr()
    assert pruneflow_here("run") == 2
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1 and words in errors


def _gates(*more):
    smaller = {"metric": "block_ratio", "comparison": "at_least", "limit": 0.01, "why": "a test"}
    gates = {
        "run_mode": "enabled",
        "gates": [smaller, *({"why": "a test", **gate} for gate in more)],
    }
    Path("configs/gates.yaml").write_text(yaml.safe_dump(gates))


def test_a_candidate_is_held_against_the_model_in_production(finished_pipeline, on_server):
    values = finished_pipeline
    better = {"metric": "perplexity_ratio_mean", "against": "production", "comparison": "improves"}
    _gates({**better, "limit": 1.0})
    first = run("flows.cli", "run")
    assert first.returncode == 0, first.stdout + first.stderr
    decision = json.loads(Path("data/reports/decision.json").read_text())
    assert decision["gates"][1]["reason"] == "Nothing is in production."

    # On other held-out text, version 1 is evaluated again; the candidate is smaller and no worse.
    values["calibration"]["test_sequences"] = 3
    values["rounds"]["r2"]["ratio"] = 0.3
    write_settings(parse_settings(values, "test"))
    _gates({**better, "limit": 5.0})
    second = run("flows.cli", "run")
    assert second.returncode == 0, second.stdout + second.stderr
    reports = {name: Path(f"data/reports/{name}.json") for name in ("production", "evaluation")}
    production, evaluation = (json.loads(path.read_text()) for path in reports.values())
    assert production["held_out"] == evaluation["held_out"]
    decision = json.loads(Path("data/reports/decision.json").read_text())
    assert decision["production"] == {"version": "1", "model": production["model"]["digest"]}
    ratio = math.prod(
        evaluation["perplexity"][domain]["perplexity"] / values["perplexity"]
        for domain, values in production["perplexity"].items()
    ) ** (1 / len(evaluation["perplexity"]))
    assert decision["gates"][1]["value"] == pytest.approx(ratio)

    # On the same text, the evaluation of version 2 is read from its registration.
    values["rounds"]["r2"]["ratio"] = 0.35
    write_settings(parse_settings(values, "test"))
    _gates(
        {"metric": "block_ratio", "against": "production", "comparison": "at_least", "limit": 0.9}
    )
    before = reports["production"].stat().st_mtime_ns
    third = run("flows.cli", "run")
    assert third.returncode == 1, third.stdout + third.stderr
    assert reports["production"].stat().st_mtime_ns == before
    decision = json.loads(Path("data/reports/decision.json").read_text())
    assert decision["production"]["version"] == "2"
    assert "below the limit 0.9" in third.stdout
