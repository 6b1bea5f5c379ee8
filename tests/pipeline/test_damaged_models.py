"""Models damaged on purpose, on real weights: the shipped gates refuse each for its own reason."""

from pathlib import Path

import pytest
import torch

from pruneflow.artifacts import staged_directory
from pruneflow.judge.compare import compare
from pruneflow.judge.gates import GateResult, decide, load_gates
from pruneflow.measure.evaluation import measure_model
from pruneflow.measure.evaluation_record import Evaluation
from pruneflow.models.export import save
from pruneflow.models.loading import load_model, load_tokenizer
from pruneflow.models.structure import layers_of
from pruneflow.models.surgery import cut_neurons
from pruneflow.paths import BASELINE, CALIBRATION_SET, CHECKPOINTS, GATES_FILE, HELD_OUT, QUESTIONS
from pruneflow.plan import load_profile
from pruneflow.pruning.prune import Recipe, prune
from pruneflow.records import read_record
from pruneflow.settings.pipeline import (
    DENSE,
    ComputeSettings,
    load_settings,
    parse_settings,
    write_settings,
)
from pruneflow.stages import run_stage_by_name
from pruneflow.tokens.calibration_set import CalibrationSet
from tests.round_records import record_as_done
from tests.unit.evaluation_example import summary

pytestmark = pytest.mark.slow

STAGES = ("model", "questions", "documents", "validate", "calibration", "baseline")
FLOAT32 = ComputeSettings(device="cpu", dtype="float32")
MISSING = "multilingual"


@pytest.fixture
def measured_dense(real_workspace: Path) -> Path:
    """Real weights and three domains, measured on text and questions; nothing pruned yet."""
    values = load_profile("demo").model_dump(mode="json")
    values["compute"] = FLOAT32.model_dump(mode="json")
    values["documents"].update(
        {"domains": ["encyclopaedic", "code", MISSING], "max_per_domain": 80}
    )
    values["calibration"].update(
        {"sequences": 12, "test_sequences": 3, "test_sequence_length": 128}
    )
    values["evaluation"]["tasks"] = {"piqa": 10}
    write_settings(parse_settings(values, Path("test")))
    for name in STAGES:
        run_stage_by_name(name)
    return CHECKPOINTS / DENSE


def measured(directory: Path) -> Evaluation:
    return measure_model(directory, HELD_OUT, QUESTIONS, FLOAT32, directory.name)


def judge(found: Evaluation, calibrated: dict[str, int]) -> dict[str, GateResult]:
    """Judge a model by the gates on perplexity and domains in configs/gates.yaml, by metric."""
    compared = compare(read_record(Evaluation, BASELINE), found, load_settings().evaluation)
    gates = load_gates(GATES_FILE)
    chosen = [
        gate
        for gate in gates.gates
        if gate.metric.startswith(("perplexity", "uncalibrated")) and gate.against == "baseline"
    ]
    judged = summary(**dict(compared), calibration_domains=calibrated)
    decision = decide(judged, gates.model_copy(update={"gates": chosen}))
    assert decision.accepted == all(gate.passed for gate in decision.gates)
    return {gate.metric: gate for gate in decision.gates}


def halve_a_layer(dense: Path, place: int, out: Path) -> Path:
    """Take every other neuron, as drawn, from one layer, and refit nothing."""
    model, tokenizer = load_model(dense, FLOAT32)
    layer = layers_of(model)[place]
    drawn = torch.randperm(layer.neurons, generator=torch.Generator().manual_seed(0))
    cut_neurons(layer, drawn[: layer.neurons // 2].sort().values)
    with staged_directory(out) as folder:
        save(model, tokenizer, folder, torch.bfloat16)
        record_as_done(folder, out.name)
    return out


def test_damage_is_refused_for_its_own_reason(measured_dense: Path) -> None:
    held = CalibrationSet.load(CALIBRATION_SET)
    blocks = held.take()
    everything = {domain: len(rows) for domain, rows in blocks.items()}

    same = judge(read_record(Evaluation, BASELINE), everything)
    assert all(gate.passed for gate in same.values())
    assert same["perplexity_ratio_mean"].value == pytest.approx(1)

    for place in (0, 29):
        damaged = halve_a_layer(measured_dense, place, Path(f"halved-{place}"))
        halved = judge(measured(damaged), everything)
        assert not halved["perplexity_ratio_mean"].passed
        assert "above the limit" in halved["perplexity_ratio_mean"].reason
        assert halved["uncalibrated_domains"].passed

    recipe = Recipe(ratio=0.2, rounds=1, ridge=0.05)
    ratios = {}
    for name, text in (
        ("whole", blocks),
        ("partial", {domain: rows for domain, rows in blocks.items() if domain != MISSING}),
    ):
        model, _ = load_model(measured_dense, FLOAT32)
        prune(model, text, recipe, tokenizer=load_tokenizer(measured_dense), directory=Path(name))
        found = judge(
            measured(Path(name, "r1")), {domain: len(rows) for domain, rows in text.items()}
        )
        ratios[name] = found["perplexity_ratio_worst"]
        missing = found["uncalibrated_domains"]
        assert missing.passed == (name == "whole")
    assert missing.domain == MISSING and MISSING in missing.reason
    assert not ratios["partial"].passed and ratios["partial"].domain == MISSING
    assert ratios["partial"].value > 2 * ratios["whole"].value
