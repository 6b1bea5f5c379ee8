"""Greedy steps meet the target, keep to floors and multiples, and take the cheapest first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneflow.errors import InputError
from pruneflow.pruning.allocation import Costs, allocate_uniform

LAYERS, WIDTH, GROUPS = 3, 64, 4


def _scores(seed, group_scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    neurons = [torch.rand(WIDTH, generator=generator, dtype=torch.double) for _ in range(LAYERS)]
    groups = [
        group_scale * torch.rand(GROUPS, generator=generator, dtype=torch.double)
        for _ in range(LAYERS)
    ]
    return neurons, groups


def _costs(**changes):
    values = {
        "neuron_weights": 72,
        "group_weights": 600,
        "neuron_multiple": 8,
        "neuron_floor": 8,
        "allowed_groups": [1, 2, 3, 4],
        **changes,
    }
    return Costs(**values)


def _removed(kept, costs):
    return sum(
        (WIDTH - len(neurons)) * costs.neuron_weights + (GROUPS - len(groups)) * costs.group_weights
        for neurons, groups in zip(kept.neurons, kept.kv_groups, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    share=st.floats(0.01, 0.7),
    multiple=st.sampled_from([1, 4, 8, 16]),
    scale=st.sampled_from([0.01, 1.0, 20.0]),
)
def test_the_target_is_met_within_one_step_of_neurons(seed, share, multiple, scale):
    costs = _costs(neuron_multiple=multiple)
    target = round(share * LAYERS * (WIDTH * 72 + GROUPS * 600))
    kept = allocate_uniform(*_scores(seed, scale), costs, target)
    removed = _removed(kept, costs)
    widths = {len(t) for t in kept.neurons}
    groups = {len(t) for t in kept.kv_groups}
    assert len(widths) == len(groups) == 1
    assert widths.pop() % multiple == 0
    assert removed >= target
    finest = LAYERS * (multiple * 72 if min(len(t) for t in kept.neurons) > 8 else 600)
    assert removed - target < finest


def test_each_layer_loses_its_own_lowest_neurons():
    neurons, groups = _scores(5)
    costs = _costs(allowed_groups=[4])
    kept = allocate_uniform(neurons, groups, costs, LAYERS * 16 * 72)
    for scores, keep in zip(neurons, kept.neurons, strict=True):
        assert keep.tolist() == sorted(keep.tolist())
        gone = sorted(set(range(WIDTH)) - set(keep.tolist()))
        assert float(scores[gone].max()) <= float(scores[keep].min())
        assert len(gone) == 16


def test_worthless_kv_groups_go_first_and_precious_ones_stay():
    cheap = allocate_uniform(*_scores(1, 1e-6), _costs(), LAYERS * 1200)
    dear = allocate_uniform(*_scores(1, 1e6), _costs(), LAYERS * 1200)
    assert {len(t) for t in cheap.kv_groups} == {2}
    assert {len(t) for t in dear.kv_groups} == {4}


def test_a_count_that_the_configuration_refuses_is_skipped():
    kept = allocate_uniform(*_scores(1, 1e-6), _costs(allowed_groups=[2, 4]), LAYERS * 1000)
    assert {len(t) for t in kept.kv_groups} == {2}


def test_ties_break_by_index():
    flat = [torch.ones(WIDTH, dtype=torch.double)] * LAYERS
    kept = allocate_uniform(flat, _scores(1)[1], _costs(allowed_groups=[4]), LAYERS * 8 * 72)
    assert kept.neurons[0].tolist() == list(range(8, WIDTH))


def test_a_target_below_the_floors_is_an_error_that_says_so():
    with pytest.raises(InputError, match="floors leave only"):
        allocate_uniform(*_scores(1), _costs(neuron_floor=32), LAYERS * (WIDTH * 72 + 2400) - 1)
