"""Recovery: what it changes, and that stopping it changes nothing."""

import json
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruneflow.compute.placement import is_streamed, place
from pruneflow.errors import DamagedArtifactError, InputError
from pruneflow.measure.perplexity import NonFiniteLossError
from pruneflow.recovery.checkpoint import STATE, WEIGHTS
from pruneflow.recovery.distillation import recover
from pruneflow.recovery.distillation_loss import divergence
from pruneflow.recovery.trainer import Trainer
from tests.conftest import ROOT
from tests.unit.recovery_example import (
    Stop,
    cut,
    random_blocks,
    recover_files,
    same_bytes,
    settings,
    stop_at,
)


@pytest.fixture
def blocks():
    return random_blocks()


@pytest.fixture
def train(tiny_model, blocks):
    """Recover a cut tiny model; every call starts from the same one."""

    def run(student=None, tokens=None, validation=None, teacher=None, **changes):
        names = changes.keys() & {"checkpoint_dir", "batch_tokens", "weights"}
        arguments = {name: changes.pop(name) for name in names}
        return recover(
            student or cut(tiny_model().float()),
            teacher or tiny_model().float(),
            tokens or blocks,
            # Text that a toy can get better at: some of what it learns from.
            validation or {name: rows[:2] for name, rows in blocks.items()},
            settings(**changes),
            label="r1",
            **arguments,
        )

    return run


def test_recovery_brings_a_pruned_model_nearer_to_its_parent(train, blocks, tiny_model):
    result = train(validation=blocks, token_budget=40 * 64)
    first, last = result.history[0], result.history[-1]
    assert first["step"] == 0
    assert result.steps == 40 == last["step"]
    assert result.tokens == 40 * 64
    assert last["validation_loss"] < 0.6 * first["validation_loss"]
    assert last["train_loss"] < 0.6 * result.history[1]["train_loss"]
    assert set(last["validation_by_domain"]) == {"prose", "code"}
    ids = torch.cat(list(blocks.values()))
    with torch.inference_mode():
        theirs = tiny_model().float()(input_ids=ids).logits
        left = divergence(result.model(input_ids=ids).logits, theirs) / ids.numel()
    by_size = sum(last["validation_by_domain"][n] * len(blocks[n]) for n in blocks) / len(ids)
    assert left == pytest.approx(by_size, rel=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(train):
    torch.manual_seed(123)  # what the caller drew before is nothing to it
    one = train()
    assert one.best_step > 0
    state = torch.get_rng_state()
    two = train()
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bytes(one.model, two.model)
    assert one.history == two.history
    assert not same_bytes(one.model, train(seed=1).model)


def test_micro_batches_change_nothing_but_rounding(train, tiny_model):
    def run(batch_tokens):
        student, teacher = cut(tiny_model()), tiny_model()
        mixed = {"temperature": 1.5, "hard_label_share": 0.3}
        return train(student, teacher=teacher, batch_tokens=batch_tokens, **mixed)

    whole, single = run(1024), run(1)
    for one, two in zip(whole.model.parameters(), single.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_stay_and_all_else_is_trained(tiny_model, train, tied):
    student = cut(tiny_model(tie_word_embeddings=tied).float())
    before = {name: tensor.clone() for name, tensor in student.named_parameters()}
    teacher = tiny_model(tie_word_embeddings=tied).float()
    dense = {name: tensor.clone() for name, tensor in teacher.named_parameters()}
    result = train(student, teacher=teacher)
    assert result.best_step > 0
    same = {n for n, tensor in result.model.named_parameters() if torch.equal(tensor, before[n])}
    assert same == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert all(torch.equal(tensor, dense[name]) for name, tensor in teacher.named_parameters())


def test_a_streamed_student_is_trained_whole_and_a_streamed_teacher_teaches_the_same(
    train, tiny_model
):
    plain = train().model
    streamed = train(
        student=place(cut(tiny_model().float()), "cpu", streamed=True),
        teacher=place(tiny_model().float(), "cpu", streamed=True),
    ).model
    assert not is_streamed(streamed) and same_bytes(plain, streamed)


def test_embeddings_can_be_trained_too_and_stay_tied(train):
    model = train(freeze_embeddings=False).model
    plain = train().model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, plain.lm_head.weight)


def test_the_result_is_a_plain_frozen_model_in_the_type_it_came_in(train, tiny_model):
    student, teacher = cut(tiny_model()).bfloat16(), tiny_model().bfloat16()
    first = {name: tensor.clone() for name, tensor in student.named_parameters()}
    result = train(student, teacher=teacher, token_budget=24 * 64)
    assert result.history[-1]["validation_loss"] < result.history[0]["validation_loss"]
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad or p.grad is not None for p in result.model.parameters())
    assert not result.model.training
    assert any(not torch.equal(t, first[n]) for n, t in result.model.named_parameters())


def test_small_updates_are_not_lost_to_bfloat16(train, tiny_model, tmp_path):
    """Steps below bfloat16's spacing add up, for what is trained is float32."""
    student, teacher, place = cut(tiny_model()).bfloat16(), tiny_model().bfloat16(), tmp_path / "c"
    first = {name: tensor.clone() for name, tensor in student.named_parameters()}
    tiny = {"learning_rate": 1e-6, "warmup_share": 0.0, "checkpoint_every": 12}
    train(student, teacher=teacher, checkpoint_dir=place, **tiny)
    for name, tensor in load_file(place / WEIGHTS).items():
        assert tensor.dtype == torch.float32
        assert 0 < (tensor - first[name].float()).abs().max() < 2e-5


def test_recomputed_blocks_give_the_same_weights(train, tiny_model):
    runs = Counter()
    student = cut(tiny_model().float())
    student.model.layers[1].register_forward_pre_hook(lambda *_: runs.update(["outer"]))
    student.model.layers[1].mlp.register_forward_pre_hook(lambda *_: runs.update(["inner"]))
    plain, lean = train(), train(student, gradient_checkpointing=True)
    for one, two in zip(plain.model.parameters(), lean.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert runs["inner"] - runs["outer"] == lean.steps
    assert "forward" not in vars(lean.model.model.layers[1])


def test_the_best_weights_win_and_a_rising_held_out_loss_ends_it(train, tiny_model):
    # The held-out loss cannot fall: the student is its own dense parent.
    teacher = tiny_model().float()
    result = train(tiny_model().float(), teacher=teacher, hard_label_share=1.0, patience=2)
    assert result.stopped_early
    assert result.steps == 8
    assert result.best_step == 0
    assert [row["step"] for row in result.history] == [0, 4, 8]
    assert same_bytes(result.model, teacher)
    endless = train(tiny_model().float(), teacher=teacher, hard_label_share=1.0, patience=0)
    assert endless.steps == 12
    assert not endless.stopped_early


def test_no_budget_gives_the_student_back_untouched(train, tiny_model):
    student = cut(tiny_model().float())
    result = train(student, token_budget=0)
    assert result.model is student
    assert (result.steps, result.history) == (0, [])
    assert same_bytes(student, cut(tiny_model().float()))


# Checkpoints


def count_steps(monkeypatch):
    done = []
    real = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: (done.append(1), real(self, batch)))
    return done


@pytest.mark.parametrize("step", [1, 3, 4, 7, 11])
def test_a_run_stopped_at_any_step_ends_in_the_same_bytes(train, tmp_path, monkeypatch, step):
    whole = train()
    assert whole.best_step == 12
    place = {"checkpoint_dir": tmp_path / "checkpoint", "checkpoint_every": 3}
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stop):
            train(**place)
    assert place["checkpoint_dir"].exists() == (step >= 3)
    done = count_steps(monkeypatch)
    resumed = train(**place)
    assert len(done) == 12 - step // 3 * 3
    assert same_bytes(resumed.model, whole.model)
    assert resumed.history == whole.history
    assert (resumed.best_step, resumed.steps) == (whole.best_step, whole.steps)


def test_a_run_that_ended_early_does_not_go_on_when_started_again(train, tmp_path, tiny_model):
    def run():
        student, teacher = tiny_model().float(), tiny_model().float()
        wish = {"hard_label_share": 1.0, "patience": 1, "checkpoint_every": 2}
        return train(student, teacher=teacher, checkpoint_dir=tmp_path / "c", **wish)

    one, two = run(), run()
    assert one.steps == two.steps == 4
    assert one.history == two.history
    assert same_bytes(one.model, two.model)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.recovery_example import recover_files
rename = Path.rename
def killed(self, target):
    rename(self, target)
    if Path(target).name.endswith(".old"):  # the old checkpoint has gone, the new one is not there
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = killed
recover_files(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_kill_9_and_another_start_end_in_the_same_bytes(
    tmp_path, tiny_model, blocks, train, monkeypatch
):
    tiny_model().float().save_pretrained(tmp_path / "dense")
    save_file(blocks, tmp_path / "tokens.safetensors")
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert (tmp_path / ".checkpoint.old").exists()
    ordered = {name: blocks[name] for name in sorted(blocks)}
    whole = train(tokens=ordered, validation=ordered)
    assert whole.best_step == whole.steps == 12
    done = count_steps(monkeypatch)
    again = recover_files(tmp_path)
    assert len(done) == 12 - 3
    assert same_bytes(again.model, whole.model)
    assert again.history == whole.history


def test_a_loss_that_is_not_finite_is_an_error_and_the_checkpoint_stays(
    train, tmp_path, monkeypatch
):
    place = tmp_path / "checkpoint"
    real = Trainer._teacher_logits

    def broken(self, ids):
        theirs = real(self, ids)
        return theirs * float("nan") if self.progress.step == 5 else theirs

    monkeypatch.setattr(Trainer, "_teacher_logits", broken)
    with pytest.raises(NonFiniteLossError, match=r"r1: the training loss .* after step 5 of 12"):
        train(checkpoint_dir=place, checkpoint_every=2)
    monkeypatch.undo()
    assert json.loads((place / STATE).read_text())["progress"]["step"] == 4
    assert same_bytes(train(checkpoint_dir=place, checkpoint_every=2).model, train().model)


# Refusals


@pytest.fixture
def checkpoint(train, tmp_path):
    train(checkpoint_dir=tmp_path / "checkpoint", checkpoint_every=5)
    return tmp_path / "checkpoint"


def test_a_checkpoint_of_another_run_is_refused(checkpoint, train, tiny_model, blocks):
    place = {"checkpoint_dir": checkpoint, "checkpoint_every": 5}
    before = sorted((p.name, p.read_bytes()) for p in checkpoint.iterdir())
    fewer = {**blocks, "code": blocks["code"][:2]}
    for other, named in (
        ({"learning_rate": 1e-3}, "other settings"),
        ({"student": cut(tiny_model().float(), (12, 20, 24))}, "other student"),
        ({"teacher": cut(tiny_model().float())}, "other teacher"),
        ({"tokens": fewer}, "other data"),
        ({"validation": fewer}, "other data"),
        ({"weights": {"code": 2.0}}, "other data"),
    ):
        with pytest.raises(InputError, match=f"checkpoint of a recovery with {named}: delete it"):
            train(**place, **other)
    assert sorted((p.name, p.read_bytes()) for p in checkpoint.iterdir()) == before
    # How often it is written changes no result.
    train(checkpoint_dir=checkpoint, checkpoint_every=7)


def test_a_damaged_or_foreign_checkpoint_is_refused(checkpoint, train, tmp_path):
    for name in (STATE, WEIGHTS, "moments.safetensors"):
        good = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(DamagedArtifactError, match=f"{name} is damaged"):
            train(checkpoint_dir=checkpoint)
        (checkpoint / name).unlink()
        with pytest.raises(DamagedArtifactError, match=f"{name} is missing"):
            train(checkpoint_dir=checkpoint)
        (checkpoint / name).write_bytes(good)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(InputError, match="is not a checkpoint of recovery"):
        train(checkpoint_dir=foreign)
    assert (foreign / "model.safetensors").read_bytes() == b"precious"


def test_models_and_blocks_that_do_not_fit_are_refused(train, tiny_model, blocks):
    same = tiny_model().float()
    short = {**blocks, "code": blocks["code"][:, :8]}
    for wrong, message in (
        ({"student": same, "teacher": same}, "share weights"),
        ({"teacher": tiny_model(vocab_size=96).float()}, "97 tokens and the teacher's 96"),
        ({"student": cut(tiny_model()).half()}, "float16"),
        ({"tokens": {"prose": blocks["prose"] + 50}}, "make its blocks with the model's tokenizer"),
        ({"validation": {"prose": blocks["prose"] - 50}}, "make its blocks with the model's"),
        ({"tokens": short}, "8 to 16 tokens long"),
        ({"tokens": {"prose": blocks["prose"][:0]}}, "domain prose has no training blocks"),
        ({"validation": {"prose": blocks["prose"][:, :1]}}, "prose has no held-out blocks"),
        ({"weights": {"law": 1.0}}, "names law"),
        ({"weights": {"code": 0.0}}, "weight of code is 0"),
        ({"token_budget": 63}, "less than one step's 64 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            train(**wrong)
