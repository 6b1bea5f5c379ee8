"""A toy recovery: a cut model, settings that end soon, and when two models are the same."""

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pruneflow.recovery.distillation import recover
from pruneflow.recovery.trainer import Trainer
from pruneflow.settings.recovery import RecoverySettings


def cut(model, widths=(12, 20, 28)):
    """The first neurons of each layer alone, another number in each."""
    for block, width in zip(model.model.layers, widths, strict=True):
        mlp = block.mlp
        mlp.gate_proj.weight.data = mlp.gate_proj.weight.data[:width].clone()
        mlp.up_proj.weight.data = mlp.up_proj.weight.data[:width].clone()
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, :width].clone()
        mlp.gate_proj.out_features = mlp.up_proj.out_features = width
        mlp.down_proj.in_features = width
    return model


def settings(**changes):
    values = {"batch_sequences": 4, "learning_rate": 5e-3, "evaluate_every": 4, **changes}
    return RecoverySettings(**{"token_budget": 12 * 4 * 16, **values})


def random_blocks():
    """Blocks of two domains, one twice as large as the other."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"prose": 6, "code": 3}
    return {n: torch.randint(0, 97, (k, 16), generator=generator) for n, k in sizes.items()}


class Stop(Exception):
    """Training was stopped by `stop_at`."""


def stop_at(monkeypatch, step):
    """Stop training before it does this step."""
    real = Trainer.step

    def limited(self, batch):
        if self.progress.step == step:
            raise Stop
        real(self, batch)

    monkeypatch.setattr(Trainer, "step", limited)


def same_bytes(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def recover_files(folder):
    """A recovery that is a function of files alone, so that any process can do it."""
    tokens = load_file(folder / "tokens.safetensors")
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(folder / "dense", dtype=torch.float32)
        for _ in range(2)
    )
    place = {"checkpoint_dir": folder / "checkpoint"}
    return recover(cut(student), teacher, tokens, tokens, settings(checkpoint_every=3), **place)
