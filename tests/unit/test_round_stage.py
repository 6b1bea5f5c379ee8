"""The stage of a round: what it records, when the schedule ends, and what is delivered."""

import gc
import weakref

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pruneflow import recovery_stage, round_stage, stages
from pruneflow.artifacts import read_json, write_manifest
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.judge.health import check_round
from pruneflow.measure.drift import compare_models
from pruneflow.models import loading
from pruneflow.models.digests import model_digest, tokenizer_digest
from pruneflow.models.loading import load_model
from pruneflow.models.round_record import read_round_record
from pruneflow.models.structure import block_weights
from pruneflow.paths import RECOVERY
from pruneflow.plan import plan_rounds
from pruneflow.recovery import distillation
from pruneflow.round_stage import run_round
from pruneflow.settings.pipeline import parse_settings, write_settings
from pruneflow.settings.pruning import Target
from pruneflow.tokens.calibration_set import CalibrationSet

MODELS = ("dense", "pruned")

# A random model's likeliest token is hardly likelier than the next: another one after every round.
NO_LIMITS = {
    "max_kl": None,
    "min_top1_agreement": None,
    "max_repetition_rise": None,
    "max_entropy_drift": None,
    "max_norm_drift": None,
}


@pytest.fixture
def descended(real_workspace, tiny_model_directory, tiny_tokenizer):
    """A workspace with a tiny dense model and a calibration set of random tokens."""

    def settings(**changes):
        values = {
            "model": {"source": str(tiny_model_directory), "dtype": "float32"},
            "compute": {"device": "cpu", "dtype": "float32"},
            "documents": {"domains": ["prose", "code"]},
            "calibration": {"sequence_length": 16, "sequences": 12},
            "pruning": {"neuron_multiple": 4},
            "health": NO_LIMITS,
            "rounds": plan_rounds(Target(ratio=0.3), 3, "linear"),
            "final_round": "r3",
            **changes,
        }
        made = parse_settings(values, "test")
        write_settings(made)
        return made

    stages.model(settings())
    generator = torch.Generator().manual_seed(2)
    stages.CALIBRATION_SET.mkdir(parents=True)
    blocks = {
        f"{split}/{domain}": torch.randint(0, 400, (6, 16), generator=generator, dtype=torch.int32)
        for split in ("calibration", "validation")
        for domain in ("prose", "code")
    }
    # Random tokens teach nothing about others: recovery is measured on what it trains on.
    blocks |= {
        f"recovery/{name}": blocks[f"validation/{name}"].clone() for name in ("prose", "code")
    }
    save_file(blocks, stages.CALIBRATION_SET / "blocks.safetensors")
    dense = stages.CHECKPOINTS / "dense"
    mixture = {"shares": {"prose": 0.5, "code": 0.5}, "counts": {"prose": 6, "code": 6}}
    write_manifest(stages.CALIBRATION_SET, tokenizer=tokenizer_digest(dense), mixture=mixture)
    return settings


def _descend(settings):
    for name in settings.rounds:
        run_round(settings, name)
    stages.select(settings)


def test_every_round_is_a_complete_model_and_the_last_is_delivered(descended):
    _descend(descended())
    parent = "dense"
    for name, ratio in (("r1", 0.1), ("r2", 0.2), ("r3", 0.3)):
        directory = stages.CHECKPOINTS / name
        record = read_round_record(directory)
        assert (record.status, record.parent, record.delivered) == ("done", parent, name)
        assert ratio <= record.achieved_ratio < ratio + 3 * 4 * 72 / 13_824
        assert record.digest == model_digest(directory)
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert sum(p.numel() for p in model.parameters()) == record.parameters
        assert {len(kept) for kept in read_json(directory / "statistics/kept.json")["neurons"]} == {
            record.widths.neurons[0]
        }
        parent = name
    assert model_digest(stages.MODEL) == read_round_record(stages.CHECKPOINTS / "r3").digest
    assert sorted(path.suffix for path in stages.MODEL.iterdir()).count(".safetensors") == 1


def test_every_directory_has_a_card_that_the_hub_can_read(descended):
    settings = descended()
    _descend(settings)
    for name in ("dense", "r1", "r3"):
        directory = stages.CHECKPOINTS / name
        card, record = ModelCard.load(directory / "README.md"), read_round_record(directory)
        assert card.data.library_name == "transformers"
        assert card.data.get("base_model") == (None if name == "dense" else settings.model.name)
        assert f"Model digest `{record.digest}`" in card.text
        assert f"{record.parameters:,} parameters" in card.text
        if name != "dense":
            assert record.health.reason in card.text
            prose = [getattr(record.validation, model)["prose"]["perplexity"] for model in MODELS]
            assert "| prose | {:.2f} | {:.2f} |".format(*prose) in card.text
    delivered = (stages.MODEL / "README.md").read_bytes()
    assert delivered == (stages.CHECKPOINTS / "r3/README.md").read_bytes()


def test_a_round_done_again_gives_the_same_bytes(descended):
    settings = descended()
    found = []
    for _ in range(2):
        run_round(settings, "r1")
        files = (path for path in (stages.CHECKPOINTS / "r1").rglob("*") if path.is_file())
        found.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]


def test_after_an_unhealthy_round_the_last_healthy_one_is_delivered(descended):
    settings = descended()
    run_round(settings, "r1")
    strict = descended(health={**NO_LIMITS, "max_perplexity_ratio": 1.0000001})
    run_round(strict, "r2")
    run_round(settings, "r3")
    stages.select(settings)
    unhealthy = read_round_record(stages.CHECKPOINTS / "r2")
    skipped = read_round_record(stages.CHECKPOINTS / "r3")
    assert (unhealthy.status, unhealthy.delivered) == ("unhealthy", "r1")
    assert (stages.CHECKPOINTS / "r2/model.safetensors").is_file()
    assert (skipped.status, skipped.delivered) == ("skipped", "r1")
    assert [path.name for path in (stages.CHECKPOINTS / "r3").iterdir()] == ["round.json"]
    assert model_digest(stages.MODEL) == read_round_record(stages.CHECKPOINTS / "r1").digest


def test_a_checkpoint_swapped_behind_the_record_is_not_delivered(descended):
    settings = descended()
    _descend(settings)
    config = stages.CHECKPOINTS / "r3/config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    before = model_digest(stages.MODEL)
    with pytest.raises(DamagedArtifactError, match="is not the model that r3 delivers"):
        stages.select(settings)
    assert model_digest(stages.MODEL) == before


def test_a_calibration_set_of_another_tokenizer_is_refused_and_nothing_is_written(descended):
    settings = descended()
    write_manifest(stages.CALIBRATION_SET, tokenizer="0" * 64)
    with pytest.raises(InputError, match="another tokenizer"):
        run_round(settings, "r1")
    assert [path.name for path in stages.CHECKPOINTS.iterdir()] == ["dense"]


def test_an_unknown_stage_is_refused_and_the_known_are_named(real_workspace):
    with pytest.raises(InputError, match="there is no stage bake: use environment, model"):
        stages.run_stage_by_name("bake")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("CUDA error: out of memory"),  # no room for as much as a context
    ],
)
def test_a_full_gpu_is_one_line_that_says_what_to_lower(real_workspace, monkeypatch, error):
    def too_large(_settings):
        raise error

    monkeypatch.setitem(stages.STAGES, "evaluation", too_large)
    monkeypatch.setattr(stages, "load_settings", lambda: None)
    with pytest.raises(InputError, match="halve compute"):
        stages.run_stage_by_name("evaluation")


def test_a_round_that_breaks_the_model_is_unhealthy_and_the_report_survives(descended, monkeypatch):
    """No crash: the dense model is delivered, and the gates will refuse it."""
    settings = descended()
    plain = round_stage.measure_round

    def broken(settings, name, calibration, pruned):
        pruned.model.norm.weight.data[3] = float("nan")
        return plain(settings, name, calibration, pruned)

    monkeypatch.setattr(round_stage, "measure_round", broken)
    run_round(settings, "r1")
    run_round(settings, "r2")
    record = read_round_record(stages.CHECKPOINTS / "r1")
    assert (record.status, record.delivered) == ("unhealthy", "dense")
    assert "The pruned model gives no finite loss on" in record.health.reason
    assert "dtype float32. The round is kept for inspection" in record.reason
    assert record.reason.endswith("dense is delivered.")
    assert (record.validation, record.drift, record.next_weights) == (None, None, None)
    assert record.health.reasons == [record.health.reason]
    assert read_round_record(stages.CHECKPOINTS / "r2").status == "skipped"


def test_what_a_round_says_of_its_model_is_true_of_the_stored_one(descended):
    settings = descended()
    for name in ("r1", "r2"):
        run_round(settings, name)
        record = read_round_record(stages.CHECKPOINTS / name)
        dense, model = (
            load_model(stages.CHECKPOINTS / directory, settings.compute)[0]
            for directory in ("dense", name)
        )
        blocks = CalibrationSet.load(stages.CALIBRATION_SET).blocks["validation"]
        measured = compare_models(dense, model, blocks, settings.compute.batch_tokens, "again")
        assert (record.validation, record.drift) == measured
        assert record.health == check_round(*measured, settings.health)


def test_a_round_reads_its_parent_and_the_dense_model_and_holds_two_models_at_most(
    descended, monkeypatch
):
    """The pruned model is measured as it is in memory, in the values that are stored."""
    settings = descended()
    read, alive, most = [], [], []
    plain = loading.load_unrecorded

    def watched(directory, compute):
        model = plain(directory, compute)
        read.append(directory.name)
        alive.append([weakref.ref(parameter) for parameter in model.parameters()])
        most.append(sum(any(ref() is not None for ref in model) for model in alive))
        return model

    monkeypatch.setattr(loading, "load_unrecorded", watched)
    gc.disable()  # what only a collection frees is in memory for as long as none comes
    try:
        for name in ("r1", "r2"):
            run_round(settings, name)
            alive.clear()
    finally:
        gc.enable()
    assert read == ["dense", "dense", "r1", "dense"]
    assert most == [1, 2, 1, 2]


def test_a_round_that_drifts_too_far_is_kept_and_says_what_is_delivered(descended):
    settings = descended()
    run_round(settings, "r1")
    strict = descended(health={**NO_LIMITS, "max_kl": 1e-9, "max_norm_drift": 1e-9})
    run_round(strict, "r2")
    record = read_round_record(stages.CHECKPOINTS / "r2")
    assert (record.status, record.delivered) == ("unhealthy", "r1")
    assert len(record.health.reasons) == 2
    assert "KL from the dense model" in record.reason
    assert record.reason.endswith("r1 is delivered.")
    assert record.delivered_digest == read_round_record(stages.CHECKPOINTS / "r1").digest
    assert record.digest == model_digest(stages.CHECKPOINTS / "r2")
    assert set(record.validation.pruned) == {"prose", "code"}


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_the_delivered_round_is_recovered_where_that_is_asked_for(descended, layout):
    recovery = {"token_budget": 480, "batch_sequences": 2, "evaluate_every": 5}
    settings = descended(
        pruning={"neuron_multiple": 4, "layout": layout},
        recovery={**recovery, "learning_rate": 0.001, "checkpoint_every": 4},
    )
    _descend(settings)
    delivered, made = (
        read_round_record(path) for path in (stages.CHECKPOINTS / "r3", stages.MODEL)
    )
    assert made.recovered_from == made.delivered_digest == delivered.digest
    assert made.digest == model_digest(stages.MODEL) != delivered.digest
    assert made.recovery.steps == 15
    losses = [row.validation_loss for row in made.recovery.history]
    assert min(losses) < losses[0]
    assert not RECOVERY.exists()
    network, _ = load_model(stages.MODEL, settings.compute)
    assert block_weights(network) == delivered.block_weights


def test_rounds_keep_every_score_and_how_domains_disagree(descended):
    run_round(descended(), "r1")
    folder = stages.CHECKPOINTS / "r1/statistics"
    rows = read_json(folder / "scores.json")["rows"]
    assert set(rows) == {"mask_fisher", "first_order", "wanda_sp", "flap", "magnitude"}
    assert load_file(folder / "scores.safetensors")["flap.heads.001"].shape == (2, 6)
    kinds = read_json(folder / "disagreement.json")["kinds"]
    assert -1 <= kinds["neurons"]["correlations"][0]["pooled"] <= 1


def _rewrite_set(shares, counts):
    """Say in the manifest of the set that it holds a reserve."""
    manifest = read_json(stages.CALIBRATION_SET / "manifest.json")
    mixture = {"shares": shares, "counts": counts}
    write_manifest(stages.CALIBRATION_SET, tokenizer=manifest["tokenizer"], mixture=mixture)


def test_the_closed_loop_draws_the_next_round_again_from_the_reserve(descended):
    feedback = {"neuron_multiple": 4, "domain_feedback": 200.0}
    settings = descended(pruning=feedback)
    _rewrite_set({"prose": 0.5, "code": 0.5}, {"prose": 3, "code": 3})
    before = {path.name: path.read_bytes() for path in stages.CALIBRATION_SET.iterdir()}
    run_round(settings, "r1")
    first = read_round_record(stages.CHECKPOINTS / "r1")
    run_round(settings, "r2")
    second = read_round_record(stages.CHECKPOINTS / "r2")
    assert first.sequences == {"prose": 3, "code": 3}
    assert second.weights == first.next_weights
    worse = max(second.weights, key=second.weights.get)
    assert second.sequences[worse] > 3
    assert sum(second.sequences.values()) == 6
    losses = second.validation.dense, first.validation.pruned
    rises = {name: losses[1][name]["nll"] - losses[0][name]["nll"] for name in losses[0]}
    assert worse == max(rises, key=rises.get)
    after = {path.name: path.read_bytes() for path in stages.CALIBRATION_SET.iterdir()}
    assert after == before


def test_recovery_trains_on_the_mixture(descended, monkeypatch):
    recovery = {"token_budget": 64, "batch_sequences": 2}
    settings = descended(recovery=recovery)
    _rewrite_set({"prose": 0.75, "code": 0.25}, {"prose": 6, "code": 2})
    seen = {}
    plain = distillation.recover

    def watched(*arguments, weights, **others):
        seen.update(weights)
        return plain(*arguments, weights=weights, **others)

    monkeypatch.setattr(recovery_stage, "recover", watched)
    _descend(settings)
    assert seen == {"prose": 1.5, "code": 0.5}
