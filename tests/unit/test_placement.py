"""A model spread over several devices is scored, pruned, measured and trained as one that is whole.

There is one processor here: the devices are pretended (tests/pretend_devices.py), the numbers real.
"""

import copy
import gc
import weakref

import pytest
import torch
from accelerate import dispatch_model

import pruneflow
from pruneflow import Recipe, prune, recover
from pruneflow.compute.placement import (
    is_streamed,
    place,
    place_by_settings,
    placement_of,
    spread_over,
    tensor_bytes,
)
from pruneflow.compute.ranks import Ranks, own_gpus
from pruneflow.errors import InputError
from pruneflow.measure.drift import compare_models
from pruneflow.models.structure import layers_of
from pruneflow.pruning.statistics import collect
from pruneflow.pruning.unit_recorder import ACTIVATIONS, MASKS, WEIGHT_GRADIENTS
from pruneflow.settings.pipeline import ComputeSettings
from tests.conftest import FAMILIES
from tests.pretend_devices import PretendDevices, pretend_gpus
from tests.unit.recovery_example import Stop, cut, same_bytes, settings, stop_at

TWO = ["cuda:0", "cuda:1"]
ALL = (ACTIVATIONS, MASKS, WEIGHT_GRADIENTS)


def spread(model, devices=TWO):
    return place(model, spread_over(model, devices))


def launched(monkeypatch, rank, ranks):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_RANK", str(rank))


def recipe(**changes):
    values = {"ratio": 0.3, "rounds": 2, "neuron_multiple": 4, "min_neuron_share": 0.1, **changes}
    return Recipe(**values)


@pytest.mark.parametrize(
    ("shape", "layout"), [*((family, "uniform") for family in FAMILIES), ("llama", "per_layer")]
)
def test_rounds_make_the_same_model_and_leave_it_spread(tiny_model, tiny_tokens, shape, layout):
    whole, asked = tiny_model(shape), recipe(layout=layout, towards_dense=0.3)
    expected = prune(copy.deepcopy(whole), tiny_tokens, asked).model
    logits = expected(input_ids=tiny_tokens["code"]).logits
    with PretendDevices():
        made = prune(spread(whole), tiny_tokens, asked).model
        assert {str(layer.device) for layer in layers_of(made)} == set(TWO)
        given = tiny_tokens["code"].to(made.device)
        answer = made(input_ids=given).logits
        assert (str(made.device), str(answer.device)) == (TWO[0], TWO[0])
    assert torch.equal(answer, logits)
    assert same_bytes(made, expected)


@pytest.mark.parametrize("room", [1e9, 1], ids=["states on the GPU", "states in host memory"])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_a_streamed_model_is_scored_and_cut_from_host_memory(
    tiny_model, tiny_tokens, monkeypatch, layout, room
):
    whole, asked = tiny_model(), recipe(layout=layout, towards_dense=0.3)
    expected = prune(copy.deepcopy(whole), tiny_tokens, asked).model
    pretend_gpus(monkeypatch, room)
    with PretendDevices():
        made = prune(place(whole, "cuda:0", streamed=True), tiny_tokens, asked).model
        assert str(made.device) == "cuda:0"
        assert {str(layer.device) for layer in layers_of(made)} == {"cpu"}
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(tensor, made.state_dict()[name], rtol=1e-9, atol=1e-12), name


def test_a_streamed_models_device_memory_does_not_grow_with_depth(
    tiny_model, tiny_tokens, monkeypatch
):
    pretend_gpus(monkeypatch, 1e9)
    peaks = {}
    for streamed in (True, False):
        for depth in (3, 6):
            with PretendDevices() as devices:
                model = place(tiny_model(num_hidden_layers=depth), "cuda:0", streamed=streamed)
                block = tensor_bytes(layers_of(model)[0].module)
                prune(model, tiny_tokens, recipe(towards_dense=0.3), batch_tokens=16)
            peaks[streamed, depth] = devices.peak[torch.device("cuda:0")]
    assert peaks[True, 6] <= 1.01 * peaks[True, 3]
    assert peaks[False, 6] >= peaks[False, 3] + 2 * block


@pytest.mark.parametrize("score", ["obs", "wanda_sp"])
def test_scores_that_make_passes_of_their_own_or_none_back_agree(tiny_model, tiny_tokens, score):
    whole = tiny_model()
    expected = prune(copy.deepcopy(whole), tiny_tokens, recipe(score=score)).model
    with PretendDevices():
        made = prune(spread(whole), tiny_tokens, recipe(score=score)).model
    assert same_bytes(made, expected)


def test_statistics_of_every_kind_are_the_same(tiny_model, tiny_tokens):
    whole = tiny_model()
    expected = collect(whole, tiny_tokens, 32, "score", needs=ALL)
    made = collect(spread(whole, ["cpu", "cpu"]), tiny_tokens, 32, "score", needs=ALL)
    for key, values in expected.sums.items():
        assert torch.equal(values, made.sums[key]), key


def test_a_spread_model_is_compared_with_the_dense_one(tiny_model, tiny_tokens):
    dense = tiny_model()
    pruned = prune(copy.deepcopy(dense), tiny_tokens, recipe(rounds=1)).model
    expected = compare_models(dense, pruned, tiny_tokens, 64, "whole")
    with PretendDevices():
        measured = compare_models(spread(dense), spread(pruned), tiny_tokens, 64, "spread")
    assert measured == expected


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_spread_student_recovers_and_goes_on_from_a_checkpoint(
    tiny_model, tiny_tokens, tmp_path, monkeypatch, method
):
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _state, _device: None)

    def trained(place_it, directory, **changes):
        student, teacher = (place_it(model) for model in (cut(tiny_model()), tiny_model()))
        asked = settings(method=method, token_budget=6 * 4 * 16, checkpoint_every=2, **changes)
        text = tiny_tokens, tiny_tokens
        return recover(student, teacher, *text, asked, checkpoint_dir=tmp_path / directory).model

    expected = trained(lambda model: model, "whole").state_dict()
    with PretendDevices():
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, 4)
            trained(spread, "spread")
        made = trained(spread, "spread").state_dict()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, made[name], rtol=1e-9, atol=1e-12), name


def test_a_model_that_accelerate_spread_is_pruned_where_it_is(tiny_model, tiny_tokens):
    whole, asked = tiny_model(tie_word_embeddings=False), recipe(rounds=1, towards_dense=0.3)
    expected = prune(copy.deepcopy(whole), tiny_tokens, asked).model
    last_on_second = {**spread_over(whole, TWO), "model.norm": "cuda:1", "lm_head": "cuda:1"}
    with PretendDevices():
        dispatch_model(whole, last_on_second, main_device=TWO[0])
        made = prune(whole, tiny_tokens, asked).model
        assert made.hf_device_map == last_on_second
        assert str(made.lm_head.weight.device) == TWO[1]
        given = tiny_tokens["code"].to(TWO[0])
        assert str(made(input_ids=given).logits.device) == TWO[0]
    assert same_bytes(made, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers.1": "disk"}, "leaves weights in host memory or on disk"),
        ({"model.layers.2": "cpu"}, "leaves weights in host memory or on disk"),
        (
            {"model.layers.1.mlp": "cuda:1", "model.layers.1.self_attn": "cuda:0"},
            "splits model.layers.1 over cuda:0, cuda:1: keep each block",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_moves(
    tiny_model, tiny_tokens, changes, message
):
    model = tiny_model()
    with PretendDevices():
        spread(model)
        model.hf_device_map = {**model.hf_device_map, **changes}
        before = [(layer.device, layer.neurons) for layer in layers_of(model)]
        with pytest.raises(InputError, match=message):
            prune(model, tiny_tokens, recipe())
        assert [(layer.device, layer.neurons) for layer in layers_of(model)] == before
        assert model(input_ids=tiny_tokens["code"].to(TWO[0])).logits.shape[0] == 6


def test_a_model_placed_anew_forgets_its_hooks(tiny_model, tiny_tokens):
    model = tiny_model()
    logits = model(input_ids=tiny_tokens["code"]).logits
    spread(model, ["cpu", "cpu"])
    assert hasattr(model, "hf_device_map")
    assert torch.equal(model(input_ids=tiny_tokens["code"]).logits, logits)
    place(model, "cpu")
    assert not hasattr(model, "hf_device_map")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    dispatch_model(model, spread_over(model, ["cpu"]), force_hooks=True)
    model.hf_device_map = spread_over(model, ["cpu"])
    place(model, "cpu", streamed=True)
    assert not any("forward" in vars(m) or hasattr(m, "_hf_hook") for m in model.modules())
    assert torch.equal(model(input_ids=tiny_tokens["code"]).logits, logits)


def test_devices_have_equal_shares_in_order_and_the_first_all_that_is_no_block(tiny_model):
    model = tiny_model(num_hidden_layers=8, vocab_size=40)
    placed = spread_over(model, ["a", "b", "c"])
    blocks = [placed.pop(f"model.layers.{index}") for index in range(8)]
    assert blocks == sorted(blocks)
    size = sum(p.nbytes for p in layers_of(model)[0].module.parameters())
    held = {device: size * blocks.count(device) for device in "abc"}
    held["a"] += sum(p.nbytes for p in [*model.parameters(), *model.buffers()]) - 8 * size
    assert all(abs(bytes_ - sum(held.values()) / 3) <= size for bytes_ in held.values())
    assert placed == dict.fromkeys(
        ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "a"
    )


@pytest.mark.parametrize(
    ("asked", "free", "where"),
    [
        ("auto", (2.0, 2.0), "whole"),
        ("auto", (1.2, 1.2), "spread"),
        ("auto", (1.2,), "streamed"),
        ("auto", (0.7, 0.7), "streamed"),
        ("auto", (1.2, 0.1), "streamed"),
        ("whole", (1.2, 1.2), "whole"),
        ("spread", (2.0, 2.0), "spread"),
        ("spread", (2.0,), "whole"),
    ],
)
def test_a_model_goes_where_there_is_room(tiny_model, monkeypatch, asked, free, where):
    model = tiny_model()
    pretend_gpus(monkeypatch, *(share * tensor_bytes(model) for share in free))
    with PretendDevices():
        place_by_settings(model, ComputeSettings(placement=asked), "cuda")
        found = {str(layer.device) for layer in layers_of(model)}
        assert str(model.device) == "cuda:0"
    assert found == {"whole": {"cuda:0"}, "spread": set(TWO), "streamed": {"cpu"}}[where]
    assert placement_of(model) == where


@pytest.mark.parametrize(("free", "many"), [((1000, 1000), 2), ((1000,), 1)])
def test_a_model_that_the_gpus_cannot_hold_is_not_spread(tiny_model, monkeypatch, free, many):
    pretend_gpus(monkeypatch, *free)
    message = rf"do not fit {many} GPU\(s\) with 0.0 GiB free .* set it to streamed"
    with pytest.raises(InputError, match=message):
        place_by_settings(tiny_model(), ComputeSettings(placement="spread"), "cuda")


@pytest.mark.parametrize("asked", ["whole", "streamed", "auto"])
def test_gpus_that_are_not_needed_are_not_touched(tiny_model, monkeypatch, asked):
    pretend_gpus(monkeypatch, 1e9, 1e9)
    info = torch.cuda.mem_get_info
    seen = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: seen.append(gpu) or info(gpu))
    with PretendDevices():
        place_by_settings(tiny_model(), ComputeSettings(placement=asked), "cuda")
    assert set(seen) <= {0}


def test_a_rank_takes_its_own_gpu_before_it_has_met_the_others(tiny_model, monkeypatch):
    pretend_gpus(monkeypatch, 1e9, 1e9)
    launched(monkeypatch, rank=1, ranks=2)
    with PretendDevices():
        assert str(place_by_settings(tiny_model(), ComputeSettings(), "cuda").device) == "cuda:1"


def test_ranks_that_placed_the_model_differently_are_told():
    class Others(Ranks):
        def gather(self, tensor):
            return [tensor, tensor + 1]

    with pytest.raises(InputError, match="they differ"):
        Others(0, 2).agree("whole", "they differ")
    Ranks().agree("whole", "they differ")


def test_a_spread_model_is_let_go_of_at_once(tiny_model):
    gc.collect()
    gc.disable()
    try:
        model = spread(tiny_model(), ["cpu", "cpu"])
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()


def test_a_library_model_is_placed_too(tiny_model_directory):
    model, _ = pruneflow.load_model(
        tiny_model_directory, dtype="float32", device="cpu", placement="streamed"
    )
    assert is_streamed(model)


@pytest.mark.parametrize(
    ("gpus_there", "ranks", "shares"),
    [
        (4, None, [[0, 1, 2, 3]]),
        (4, 4, [[0], [1], [2], [3]]),
        (8, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (5, 2, [[0, 1], [2, 3]]),
        (1, 2, [[0], [0]]),
    ],
)
def test_ranks_share_out_the_gpus(monkeypatch, gpus_there, ranks, shares):
    pretend_gpus(monkeypatch, *[1] * gpus_there)
    for rank, expected in enumerate(shares):
        if ranks:
            launched(monkeypatch, rank, ranks)
        assert own_gpus() == expected
