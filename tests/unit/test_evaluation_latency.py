"""Speed of tiny models side by side, and the intervals of its medians."""

import math
from itertools import count
from pathlib import Path

import numpy
import pytest
import torch
from transformers import LlamaForCausalLM

from pruneflow.compute.placement import is_streamed, tensor_bytes
from pruneflow.errors import InputError
from pruneflow.measure import latency
from pruneflow.measure.deployment import FreshProcess
from pruneflow.measure.latency_record import Placement, SampleOutput
from pruneflow.settings.pipeline import ComputeSettings, LatencySettings
from tests.pretend_devices import PretendDevices, pretend_gpus
from tests.round_records import record_as_done


@pytest.fixture
def save(tmp_path, tiny_model, tiny_tokenizer):
    """Write a model directory with MLPs of some width, as a stage would."""

    def write(name: str, width: int) -> Path:
        model = tiny_model(vocab_size=400, intermediate_size=width, eos_token_id=None).float()
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        record_as_done(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def two(save):
    return {"dense": save("dense", 64), "pruned": save("pruned", 24)}


def test_a_first_token_that_this_process_finds_improbable_is_no_reload(tiny_model):
    model = tiny_model()
    prompt = [1, 2, 3]
    with torch.no_grad():
        order = model(torch.tensor([prompt])).logits[0, -1].argsort(descending=True).tolist()
    good = FreshProcess(problems=[], prompt_ids=prompt, ids=[order[0]])
    bad = FreshProcess(problems=[], prompt_ids=prompt, ids=[order[-1]])
    assert latency._confirm_first_token(model, good) == good
    assert "another token" in latency._confirm_first_token(model, bad).problems[0]


def test_answers_of_both_models_stand_side_by_side_and_one_that_does_not_load_has_none():
    dense = FreshProcess(problems=[], answers={"One": " two", "A": " B"})
    pruned = FreshProcess(problems=[], answers={"One": " one", "A": " A"})
    assert latency._sample_outputs(dense, pruned) == [
        SampleOutput(prompt="One", dense=" two", pruned=" one"),
        SampleOutput(prompt="A", dense=" B", pruned=" A"),
    ]
    failed = latency._sample_outputs(dense, FreshProcess(problems=["killed"]))
    assert [output.pruned for output in failed] == [None, None]


def test_a_prompt_beyond_the_context_is_refused(tiny_model):
    model = tiny_model(max_position_embeddings=64)
    settings = LatencySettings(prompt_tokens=63, new_tokens=2)
    with pytest.raises(InputError, match="65, and the model's context is 64"):
        latency.time_in_turn({"dense": model, "pruned": model}, settings)


def test_both_models_are_timed_equally_often_and_the_warm_up_is_not_counted(
    tiny_model, monkeypatch
):
    model = tiny_model()
    # The first to go changes: dense then pruned, pruned then dense.
    times = [(0.5, 2.0), (0.25, 1.0), (0.2, 1.0), (0.4, 2.0)]
    seconds = iter([(9.0, 9.0)] * 2 + times * 3)
    monkeypatch.setattr(latency, "_time_once", lambda *_: next(seconds))
    settings = LatencySettings(prompt_tokens=10, new_tokens=4, repeats=6)
    runs = latency.time_in_turn({"dense": model, "pruned": model}, settings)
    assert next(seconds, None) is None
    assert runs["dense"] == {
        "prefill": [20.0, 25.0] * 3,
        "decode": [2.0, 2.0] * 3,
        "first_token": [0.5, 0.4] * 3,
    }
    assert runs["pruned"]["decode"] == [4.0] * 6
    twice = {"median": 2.0, "low": 2.0, "high": 2.0, "min": 2.0, "max": 2.0}
    assert latency.speedups(runs).decode == twice
    assert latency.speedups(runs).first_token == twice


@pytest.mark.parametrize(("max_seconds", "expected"), [(0, 6), (3600, 19)])
def test_repeats_continue_until_the_speed_up_is_known_or_the_time_is_up(
    tiny_model, monkeypatch, max_seconds, expected
):
    """Four noisy repeats, and then quiet ones, until the interval leaves the noisy ones out."""
    model, calls = tiny_model(), count()

    def time_once(*_: object) -> tuple[float, float]:
        number = next(calls)
        repeat, position = divmod(number - 2, 2)
        noise = 1.0 if repeat >= 4 or position else [1.0, 1.3, 1.6, 0.7][repeat]
        return 1.0 * noise, 1.0 * noise

    monkeypatch.setattr(latency, "_time_once", time_once)
    settings = LatencySettings(
        prompt_tokens=4, new_tokens=2, repeats=6, precision=0.1, max_seconds=max_seconds
    )
    runs = latency.time_in_turn({"dense": model, "pruned": model}, settings)
    spread = latency.speedups(runs).decode
    settled = spread["high"] - spread["low"] <= 0.2 * spread["median"]
    assert settled is (max_seconds > 0)
    repeats = len(runs["dense"]["decode"])
    assert repeats == 6 if max_seconds == 0 else 6 < repeats <= expected


def test_a_busy_machine_is_noticed():
    if latency.run_queue() is None:
        pytest.skip("no /proc/self/task/*/schedstat")
    ran = latency.run_queue()
    sum(range(3_000_000))
    assert latency.run_queue()[0] > ran[0]
    assert latency._load_warnings((0, 0), (900, 100)) == []
    assert latency._load_warnings(None, None) == []
    (warning,) = latency._load_warnings((1000, 500), (1600, 900))
    assert "threads waited for a CPU for 40% of their time" in warning


@pytest.mark.parametrize("count", range(6, 31))
def test_the_interval_of_a_median_is_the_narrowest_that_a_coin_allows(count):
    """Ends are the k-th values from below and above, with P(fewer than k heads) at most 2.5 %."""
    values = numpy.random.default_rng(count).permutation(count).astype(float)
    tails = [math.comb(count, heads) / 2**count for heads in range(count)]
    k = max(k for k in range(1, count // 2 + 1) if sum(tails[:k]) <= 0.025)
    spread = latency._with_interval(list(values))
    assert (spread["low"], spread["high"]) == (k - 1, count - k)
    assert (spread["min"], spread["max"]) == (0, count - 1)


@pytest.mark.parametrize("count", [7, 25])
def test_the_interval_covers_the_median_of_skewed_times_in_95_of_100_runs(count):
    generator = numpy.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        spread = latency._with_interval(list(generator.exponential(size=count)))
        covered += spread["low"] <= math.log(2) <= spread["high"]
    assert covered >= 935  # 950 less two standard errors


def test_too_few_values_have_no_interval():
    assert latency._with_interval([1.0, 2.0, 3.0, 4.0, 5.0])["low"] is None


def timed_on_a_gpu(monkeypatch, directories, size, placement="auto"):
    """Time two models on a pretended GPU with so many times the dense one's bytes free.

    Returns:
        Where each was timed, and of every run: whose it was, its new tokens, where both were.
    """
    weights = tensor_bytes(LlamaForCausalLM.from_pretrained(directories["dense"]))
    runs, once = [], latency._time_once
    compute = ComputeSettings(placement=placement, dtype="float32")
    settings = LatencySettings(prompt_tokens=4, new_tokens=2, repeats=6, max_seconds=0)
    with monkeypatch.context() as patch, PretendDevices():
        pretend_gpus(patch, size * weights)
        patch.setattr(latency, "resolve_device", lambda _: "cuda")
        with latency.Turns(directories, compute) as both:

            def time_once(model, prompt, new_tokens):
                name = next(name for name, other in both.models.items() if other is model)
                where = [str(other.lm_head.weight.device) for other in both.models.values()]
                runs.append((name, new_tokens, *where))
                return once(model, prompt, new_tokens)

            patch.setattr(latency, "_time_once", time_once)
            turn = None if both.together else both.turn
            latency.time_in_turn(both.models, settings, turn)
        assert [str(model.device) for model in both.models.values()] == ["cpu", "cpu"]
    return both.placement, runs


def test_models_that_fit_the_gpu_together_stay_there(two, monkeypatch):
    placement, runs = timed_on_a_gpu(monkeypatch, two, size=2.3)
    assert placement == {"dense": "whole", "pruned": "whole"}
    assert {run[1:] for run in runs} == {(2, "cuda:0", "cuda:0")}
    assert latency._placement_warnings(Placement(**placement)) == []


def test_models_that_do_not_are_brought_there_in_turn_and_warmed_up_there(two, monkeypatch):
    placement, runs = timed_on_a_gpu(monkeypatch, two, size=1.2)
    assert placement == {"dense": "whole", "pruned": "whole"}
    dense, pruned = ("cuda:0", "cpu"), ("cpu", "cuda:0")
    assert runs[:4] == [
        *(("pruned", 1, *pruned), ("pruned", 2, *pruned)),
        *(("dense", 1, *dense), ("dense", 2, *dense)),
    ]


def test_a_model_that_does_not_fit_alone_is_streamed_and_a_warning_says_so(two, monkeypatch):
    placement, _ = timed_on_a_gpu(monkeypatch, two, size=1.05)
    assert placement == {"dense": "streamed", "pruned": "whole"}
    assert latency._placement_warnings(Placement(**placement)) == [
        "the dense model was timed streamed and the pruned one whole: the speed-up also reflects "
        "weight placement, not only model size"
    ]
    placement, _ = timed_on_a_gpu(monkeypatch, two, size=9, placement="streamed")
    assert latency._placement_warnings(Placement(**placement)) == [
        "both models were timed streamed, not whole on one GPU"
    ]


def test_a_turn_that_fails_leaves_the_device_free(two, monkeypatch):
    with monkeypatch.context() as patch, PretendDevices():
        pretend_gpus(patch, 1e9)
        patch.setattr(latency, "resolve_device", lambda _: "cuda")
        both = latency.Turns(two, ComputeSettings(placement="streamed", dtype="float32"))
        with pytest.raises(ZeroDivisionError), both.turn("dense") as model:
            assert is_streamed(model)
            raise ZeroDivisionError
        assert not is_streamed(model)
        assert str(model.device) == "cpu"


@pytest.mark.slow
def test_measure_latency_of_two_models(two):
    settings = LatencySettings(prompt_tokens=16, new_tokens=4, repeats=6, max_seconds=0)
    compute = ComputeSettings(device="cpu", dtype="float32")
    result = latency.measure_latency(two["dense"], two["pruned"], settings, compute)
    assert result.reload.ok, result.reload.reason
    assert result.bytes.pruned.weights < result.bytes.dense.weights
    # The dense model is 64 wide in the MLP, the pruned one 24, both 24 in attention.
    first = [warning.partition(" ")[0] for warning in result.warnings]
    assert first[:2] == ["MLP", "attention"] and first[2:] in ([], ["the"])  # the machine is busy
    assert result.repeats == 6
    for speed in (result.dense, result.pruned):
        for spread in (speed.prefill, speed.decode, speed.first_token):
            assert 0 < spread["min"] <= spread["low"] <= spread["median"]
            assert spread["median"] <= spread["high"] <= spread["max"]
    for memory in (result.memory.dense, result.memory.pruned):
        assert memory.peak >= memory.before > 0
        assert memory.device_peak is None
    assert (result.placement.dense, result.placement.pruned) == ("whole", "whole")
