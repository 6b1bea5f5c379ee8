"""The benchmarks of cost and scale: what is counted as needed, how growth is read off."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import external_tools
from benchmarks.cost import Case, RunSettings, measure, random_model
from benchmarks.growth import cases, exponent
from benchmarks.operations import VOCABULARY, Shape, neurons_after, work
from docs.scale import (
    COLUMNS,
    MODELS,
    Measured,
    Reached,
    gram_bytes,
    score_bytes,
    seconds,
    weight_bytes,
)
from pruneflow.errors import InputError
from pruneflow.models.structure import block_weights, layers_of
from pruneflow.pruning.unit_recorder import MASKS, Recorder

SMALL = Shape(2, 64, 128, 4, 2)


def test_the_products_of_a_round_are_those_that_torch_counts():
    model = random_model(SMALL, 2, "float32", "cpu")
    model.set_attn_implementation("eager")  # the counter does not see into fused attention
    tokens = torch.randint(VOCABULARY, (3, 16))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False)
    needed = work(SMALL, 2, 3, 16, kept=96)
    attention = 2 * SMALL.hidden * 16 * tokens.numel() * 2
    # Eager attention computes what is masked, too: twice what is needed.
    assert counter.get_total_flops() == pytest.approx(
        needed["score"].half / 2 + attention, rel=1e-3
    )
    gram = 2 * tokens.numel() * 2 * 128 * (128 + 64)
    assert needed["equations"].single == gram


def test_growth_is_the_slope_in_logarithms():
    assert exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2.0)
    for kind, sizes in cases(256, 2, 6).items():
        assert len(sizes) == 4, kind
        assert len({(case.shape, case.layers, case.sequences) for case in sizes.values()}) == 4


def test_a_batch_shows_as_many_numbers_as_are_counted():
    layers = layers_of(random_model(SMALL, 2, "float32", "cpu"))
    assert 8 * (Recorder(layers, {MASKS}, 1, "cpu")._size - 1) == score_bytes(SMALL)


def test_widths_after_a_round_are_those_that_a_round_makes():
    case = Case("small", Shape(2, 64, 640, 1, 1), 2, sequences=4)  # one head stays
    found = measure(case, RunSettings(rounds=2, dtype="float32", length=16), digests=True)
    assert found["neurons"] == [neurons_after(case.shape, ratio) for ratio in (0.1, 0.2)]
    again = measure(case, RunSettings(rounds=2, dtype="float32", length=16), digests=True)
    assert again["digests"] == found["digests"]


def test_scale_counts_the_weights_of_a_block_and_shares_what_ranks_can_share():
    assert SMALL.layers * SMALL.block == block_weights(random_model(SMALL, 2, "float32", "cpu"))
    assert weight_bytes(MODELS["405B"]) == pytest.approx(803e9, rel=0.01)
    limits = dict.fromkeys(("half", "single", "double"), 1e12)
    reached = Reached(dict.fromkeys(("score", "equations", "solve"), 0.5), rest=0.0)
    known = Measured(limits, reached, reached, {}, 48, 2.0, memory=1.0, characters=1.0)
    shared, solve, _, exchange = COLUMNS
    one, eight, many = (seconds(MODELS["70B"], 98_304, n, known) for n in (1, 8, 64))
    assert eight[shared] == pytest.approx(one[shared] / 8)
    assert many[shared] == pytest.approx(one[shared] / 24)  # there are no more batches
    assert eight[solve] == one[solve]
    assert one[exchange] == 0
    vectors = 24 * 8 * 2 * 80 * (28672 + 64 + 8)
    sent = 2 * 80 * gram_bytes(MODELS["70B"]) + vectors
    assert eight[exchange] == pytest.approx(sent / 300e9)


def test_an_external_tool_that_is_not_installed_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(external_tools.importlib.util, "find_spec", lambda _name: None)
    for prune in external_tools.EXTERNAL_TOOLS.values():
        assert not prune.installed
        with pytest.raises(InputError, match="pip install --no-deps"):
            prune(None, {}, 0.2)
