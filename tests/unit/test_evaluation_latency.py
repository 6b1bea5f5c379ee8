"""Latency of tiny models, and the reload proof in a process of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pruneflow.config import ComputeSettings, LatencySettings
from pruneflow.errors import InputError
from pruneflow.evaluation import latency, reload
from pruneflow.models.loading import model_digest
from pruneflow.models.record import write_record

COMPUTE = ComputeSettings(device="cpu", dtype="float32")
SETTINGS = LatencySettings(prompt_tokens=16, new_tokens=4, repeats=3)


def save(directory: Path, width: int) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, **{letter: number for number, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.4,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    record(directory)
    return directory


def record(directory: Path) -> None:
    digest = model_digest(directory)
    write_record(
        directory,
        round="dense",
        status="done",
        delivered="dense",
        delivered_digest=digest,
        digest=digest,
        dense={},
    )


def without(directory: Path, tensor: str) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights[tensor]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_complete_model_reloads_and_writes(tmp_path):
    result = reload.reload(str(save(tmp_path / "model", 24)), "float32", 5)
    assert result["problems"] == []
    assert len(result["ids"]) == 5
    assert result["memory"]["peak"] >= result["memory"]["before"] > 0
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        first = model(torch.tensor([result["prompt_ids"]])).logits[0, -1].argmax()
    assert result["ids"][0] == first


def test_a_left_over_or_misshapen_tensor_is_a_problem(tmp_path):
    directory = save(tmp_path / "model", 24)
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.0.mlp.extra_proj.weight"] = torch.zeros(2, 2)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    problems = reload.reload(str(directory), "float32", 2)["problems"]
    assert problems == ["unexpected keys: model.layers.0.mlp.extra_proj.weight"]


def test_the_fresh_process_fails_on_a_missing_tensor(tmp_path):
    directory = save(tmp_path / "model", 24)
    without(directory, "model.layers.1.mlp.up_proj.weight")
    result = latency.reload_alone(directory, "float32")
    assert not result["ok"]
    assert "missing keys: model.layers.1.mlp.up_proj.weight" in result["reason"]


def test_the_fresh_process_cannot_import_this_project(tmp_path):
    probe = tmp_path / "probe.py"
    block = (
        "import runpy, json\n"
        f"reload = runpy.run_path({str(latency.RELOAD)!r}, run_name='reload')\n"
        "reload['forbid_project']()\n"
        "found = []\n"
        "for name in ('pruneflow', 'pruneflow.models.loading', 'flows', 'tasks'):\n"
        "    try:\n"
        "        __import__(name)\n"
        "        found.append(name)\n"
        "    except ImportError:\n"
        "        pass\n"
        "print(json.dumps(found))\n"
    )
    probe.write_text(block)
    result = latency.isolated(probe)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []
    assert "forbid_project()" in latency.RELOAD.read_text().split('if __name__ == "__main__":')[1]


def test_peak_memory_is_the_childs_own(tmp_path):
    """A child's ru_maxrss starts at what its parent held; ours must not."""
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import runpy\n"
        f"print(runpy.run_path({str(latency.RELOAD)!r}, run_name='reload')['peak_memory']())\n"
    )
    ballast = torch.ones(100_000_000 // 4)
    result = latency.isolated(probe)
    assert int(result.stdout) < 60_000_000 < ballast.numel() * 4


def test_a_process_that_dies_gives_its_last_line_as_reason(tmp_path):
    result = latency.reload_alone(tmp_path / "nothing", "float32")
    assert not result["ok"]
    assert result["memory"] is None
    assert "\n" not in result["reason"]


def test_a_first_token_that_this_process_finds_improbable_is_no_reload(tmp_path):
    directory = save(tmp_path / "model", 24)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt = [1, 2, 3]
    with torch.no_grad():
        order = model(torch.tensor([prompt])).logits[0, -1].argsort(descending=True).tolist()
    good = {"ok": True, "reason": None, "prompt_ids": prompt, "ids": [order[0]]}
    bad = {**good, "ids": [order[-1]]}
    latency._confirm_first_token(model, good)
    latency._confirm_first_token(model, bad)
    assert good["ok"]
    assert not bad["ok"]


def test_a_prompt_beyond_the_context_is_refused(tmp_path):
    model = LlamaForCausalLM.from_pretrained(save(tmp_path / "model", 24))
    settings = LatencySettings(prompt_tokens=63, new_tokens=2, repeats=1)
    with pytest.raises(InputError, match="65, and the model's context is 64"):
        latency._time_in_turn({"dense": model, "pruned": model}, settings)


def test_both_models_are_timed_equally_often_and_the_warm_up_is_not_counted(tmp_path, monkeypatch):
    model = LlamaForCausalLM.from_pretrained(save(tmp_path / "model", 24))
    seconds = iter([(9.0, 9.0)] * 2 + [(0.5, 2.0), (0.25, 1.0), (0.2, 1.0), (0.4, 2.0)])
    monkeypatch.setattr(latency, "_time_once", lambda *_: next(seconds))
    settings = LatencySettings(prompt_tokens=10, new_tokens=4, repeats=2)
    runs = latency._time_in_turn({"dense": model, "pruned": model}, settings)
    # The first to go changes: dense then pruned, pruned then dense.
    assert runs["dense"] == {
        "prefill": [20.0, 25.0],
        "decode": [2.0, 2.0],
        "first_token": [0.5, 0.4],
    }
    assert runs["pruned"]["decode"] == [4.0, 4.0]
    assert latency._speedup(runs)["decode"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert latency._speedup(runs)["first_token"] == {"median": 2.0, "min": 2.0, "max": 2.0}


@pytest.mark.slow
def test_measure_latency_of_two_models(tmp_path):
    dense, pruned = save(tmp_path / "dense", 64), save(tmp_path / "pruned", 24)
    result = latency.measure_latency(dense, pruned, SETTINGS, COMPUTE)
    assert result["reload"]["ok"], result["reload"]["reason"]
    assert result["bytes"]["pruned"] < result["bytes"]["dense"]
    for name in ("dense", "pruned"):
        for measure in ("prefill", "decode", "first_token"):
            spread = result[name][measure]
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert result["memory"][name]["peak"] >= result["memory"][name]["before"] > 0
    json.dumps(result, allow_nan=False)
