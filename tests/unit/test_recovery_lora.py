"""Recovery by low-rank adapters: every family, merged into a plain model at the end."""

import pytest
import torch

from pruneflow.models.families import FAMILIES
from pruneflow.models.structure import layers_of
from pruneflow.models.surgery import cut_neurons
from pruneflow.recovery.checkpoint import WEIGHTS
from pruneflow.recovery.distillation import recover
from pruneflow.recovery.trainee import adapters, block_linears
from pruneflow.recovery.trainer import Trainer
from pruneflow.settings.recovery import RecoverySettings
from tests.unit.recovery_example import Stop, stop_at


@pytest.fixture
def pruned(tiny_model):
    """A cut model, another width in each layer, and its dense parent."""

    def make(family="llama", dtype=torch.float32):
        student, teacher = tiny_model(family).to(dtype), tiny_model(family).to(dtype)
        for layer, width in zip(layers_of(student), (12, 20, 28), strict=True):
            cut_neurons(layer, torch.arange(width))
        return student, teacher

    return make


def train(models, tokens, steps=8, **changes):
    place = {"checkpoint_dir": changes.pop("checkpoint_dir", None)}
    values = {
        "method": "lora",
        "lora_rank": 4,
        "lora_alpha": 8,
        "batch_sequences": 4,
        "learning_rate": 1e-2,
        "evaluate_every": 4,
        "token_budget": steps * 4 * 16,
        **changes,
    }
    return recover(*models, tokens, tokens, RecoverySettings(**values), **place)


def structure(model):
    modules = [(name, type(module)) for name, module in model.named_modules()]
    return modules, {n: (t.shape, t.dtype) for n, t in model.state_dict().items()}, set(vars(model))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_adapters_are_merged_into_a_plain_and_better_model(pruned, tiny_tokens, family):
    models = pruned(family)
    before = structure(models[0])
    config = models[0].config.to_dict()
    weights = {name: tensor.clone() for name, tensor in models[0].named_parameters()}
    linears = {f"{name}.weight" for name in block_linears(models[0])}
    result = train(models, tiny_tokens)
    assert result.model is models[0]
    assert structure(result.model) == before
    assert result.model.config.to_dict() == config
    assert not any(p.requires_grad or p.grad is not None for p in result.model.parameters())
    assert result.best_step > 0
    assert result.history[-1]["validation_loss"] < 0.9 * result.history[0]["validation_loss"]
    trained = {
        n for n, tensor in result.model.named_parameters() if not torch.equal(tensor, weights[n])
    }
    assert trained == linears
    assert {name.split(".weight")[0] for name in linears} >= {
        next(n for n, module in models[0].named_modules() if module is wanted)
        for layer in layers_of(models[0])
        for wanted in (layer.mlp_consumer, layer.attention_consumer)
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_merged_weights_compute_what_the_adapters_did(pruned, tiny_tokens, family):
    student, _ = pruned(family, torch.double)
    trainee = adapters(student, RecoverySettings(lora_rank=3))
    plain = student(input_ids=tiny_tokens["code"]).logits.detach()
    for parameter in trainee.parameters.values():
        parameter.data.normal_(std=0.1)
    with torch.no_grad():
        adapted = trainee.model(input_ids=tiny_tokens["code"]).logits
        merged = trainee.finish()(input_ids=tiny_tokens["code"]).logits
    assert (adapted - plain).abs().max() > 0.01
    torch.testing.assert_close(merged, adapted, rtol=1e-9, atol=1e-9)


def test_only_adapters_have_moments_and_the_weights_keep_their_type(pruned, tiny_tokens):
    student, teacher = pruned(dtype=torch.bfloat16)
    wish = RecoverySettings(method="lora", lora_rank=2, token_budget=64, learning_rate=0.1)
    trainer = Trainer(student, teacher, wish, steps=1, batch_tokens=64, label="r1")
    trainer.step(torch.cat(list(tiny_tokens.values())))
    snapshot = trainer.snapshot()
    assert all("lora_" in name for name in snapshot.weights)
    assert {tensor.dtype for tensor in snapshot.weights.values()} == {torch.float32}
    assert len(snapshot.moments) == 2 * len(snapshot.weights) == 2 * 2 * 7 * 3
    rest = [p for n, p in student.named_parameters() if "lora_" not in n]
    assert {p.dtype for p in rest} == {torch.bfloat16}
    assert all(p.grad is None for p in rest)
    down = student.model.layers[0].mlp.down_proj
    added = down.scaling["default"] * down.lora_B["default"].weight @ down.lora_A["default"].weight
    once = (down.base_layer.weight.float() + added).bfloat16()
    merged = trainer._student.finish()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert torch.equal(merged.model.layers[0].mlp.down_proj.weight, once)


def test_a_stopped_run_ends_in_the_same_bytes(pruned, tiny_tokens, tmp_path, monkeypatch):
    whole = train(pruned(), tiny_tokens)
    lean_run = {"gradient_checkpointing": True}
    lean = train(pruned(), tiny_tokens, **lean_run)
    place = {"checkpoint_dir": tmp_path / "c", "checkpoint_every": 3, **lean_run}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, 5)
        train(pruned(), tiny_tokens, **place)
    assert (tmp_path / "c" / WEIGHTS).exists()
    resumed = train(pruned(), tiny_tokens, **place)
    assert resumed.history == lean.history
    for one, two, three in zip(
        *(run.model.parameters() for run in (whole, lean, resumed)), strict=True
    ):
        torch.testing.assert_close(one, two)
        assert torch.equal(two, three)


def test_a_lora_that_should_train_embeddings_is_refused():
    with pytest.raises(ValueError, match="freeze_embeddings is false"):
        RecoverySettings(method="lora", freeze_embeddings=False)
