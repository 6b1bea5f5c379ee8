"""Greedy steps meet the target, keep to floors and multiples, and take the cheapest first."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneflow.errors import InputError
from pruneflow.pruning.allocation import LayerUnits, Limits, allocate

LAYERS, WIDTH, GROUPS, RATIO = 3, 64, 4, 3
NEURON, HEAD, GROUP = 72, 200, 1000  # a group without heads weighs 400
ALL = ("neurons", "heads", "kv_groups")
TOGETHER, APART = [list(range(LAYERS))], [[index] for index in range(LAYERS)]


def _layer(neurons, heads, groups):
    scores = {"neurons": neurons, "heads": heads, "kv_groups": groups}
    return LayerUnits(scores, {"neurons": NEURON, "heads": HEAD, "kv_groups": GROUP})


def _units(seed, scale=1.0):
    """Scores of three layers; a group is worth what its heads are, and a little more."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.rand(count, generator=generator, dtype=torch.double)

    units = []
    for _ in range(LAYERS):
        heads = scale * draw(GROUPS * RATIO)
        groups = heads.view(GROUPS, RATIO).sum(1) * 1.1
        units.append(_layer(draw(WIDTH), heads, groups))
    return units


def _limits(**changes):
    return Limits(**{"kinds": ALL, "neuron_multiple": 8, "neuron_floor": 8, **changes})


def _removed(kept):
    total = 0
    for neurons, heads in zip(kept.neurons, kept.heads, strict=True):
        groups, ratio = heads.shape
        total += (WIDTH - len(neurons)) * NEURON
        total += GROUPS * GROUP - groups * (GROUP - (RATIO - ratio) * HEAD)
    return total


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    share=st.floats(0.01, 0.7),
    multiple=st.sampled_from([1, 4, 8, 16]),
    scale=st.sampled_from([0.01, 1.0, 20.0]),
    pools=st.sampled_from([TOGETHER, APART]),
)
def test_the_target_is_met_within_one_step(seed, share, multiple, scale, pools):
    target = round(share * LAYERS * (WIDTH * NEURON + GROUPS * GROUP))
    kept = allocate(_units(seed, scale), pools, _limits(neuron_multiple=multiple), target)
    assert all(len(t) % multiple == 0 and len(t) >= 8 for t in kept.neurons)
    assert _removed(kept) >= target
    together = LAYERS if pools is TOGETHER else 1
    # The finest step: neurons while a pool has some above its floor, else what came last.
    above = any(len(t) > max(8, multiple) for t in kept.neurons)
    neurons = multiple * NEURON
    assert _removed(kept) - target < together * (neurons if above else max(neurons, GROUP))


@pytest.mark.parametrize("pools", [TOGETHER, APART])
def test_every_group_of_a_layer_keeps_as_many_heads_and_each_its_best(pools):
    units = _units(3, scale=0.02)
    kept = allocate(units, pools, _limits(), 9000)
    assert any(heads.shape[1] < RATIO for heads in kept.heads)
    for layer, heads in zip(units, kept.heads, strict=True):
        for row in heads:
            group = int(row[0]) // RATIO
            assert set((row // RATIO).tolist()) == {group}
            assert row.tolist() == sorted(row.tolist())
            mine = layer.scores["heads"][group * RATIO : (group + 1) * RATIO]
            assert layer.scores["heads"][row].sum() == pytest.approx(
                float(mine.sort(descending=True).values[: len(row)].sum())
            )


def test_uniform_keeps_the_same_widths_and_per_layer_spends_where_it_is_cheap():
    units = _units(7)
    units[1].scores["neurons"] *= 1e-3
    together = allocate(units, TOGETHER, _limits(), 4000)
    assert len({len(t) for t in together.neurons}) == 1
    assert len({t.shape for t in together.heads}) == 1
    apart = allocate(units, APART, _limits(), 4000)
    assert [len(t) for t in apart.neurons] == [WIDTH, 8, WIDTH]


def test_each_layer_loses_its_own_lowest_neurons():
    units = _units(5)
    kept = allocate(units, TOGETHER, _limits(kinds=("neurons",)), LAYERS * 16 * NEURON)
    for layer, keep in zip(units, kept.neurons, strict=True):
        assert keep.tolist() == sorted(keep.tolist())
        gone = sorted(set(range(WIDTH)) - set(keep.tolist()))
        assert float(layer.scores["neurons"][gone].max()) <= float(
            layer.scores["neurons"][keep].min()
        )
        assert len(gone) == 16


def test_a_kind_that_is_switched_off_stays_whole():
    for kind in ALL:
        kept = allocate(_units(2, 0.1), APART, _limits(kinds=(kind,)), 2000)
        assert (kind == "neurons") == any(len(t) < WIDTH for t in kept.neurons)
        assert (kind == "kv_groups") == any(t.shape[0] < GROUPS for t in kept.heads)
        assert (kind == "heads") == any(t.shape[1] < RATIO for t in kept.heads)


def test_a_layer_in_no_pool_keeps_all_it_has():
    kept = allocate(_units(2, 0.1), [[0], [2]], _limits(), 6000)
    assert len(kept.neurons[1]) == WIDTH
    assert kept.heads[1].tolist() == torch.arange(GROUPS * RATIO).view(GROUPS, RATIO).tolist()


def test_attention_that_a_configuration_refuses_is_skipped():
    allowed = {(4, 3), (2, 3)}
    kept = allocate(_units(1, 1e-6), TOGETHER, _limits(attention=allowed), LAYERS * 2000)
    assert {t.shape for t in kept.heads} == {(2, 3)}
    kept = allocate(_units(1, 1e-6), TOGETHER, _limits(attention={(4, 3)}), LAYERS * 1000)
    assert {t.shape for t in kept.heads} == {(4, 3)}


def test_worthless_attention_goes_first_and_precious_stays():
    cheap = allocate(_units(1, 1e-6), TOGETHER, _limits(), LAYERS * 2000)
    dear = allocate(_units(1, 1e6), TOGETHER, _limits(), LAYERS * 2000)
    assert all(len(t) == WIDTH for t in cheap.neurons)
    assert {t.shape for t in dear.heads} == {(GROUPS, RATIO)}


def test_a_group_is_worth_what_is_left_of_its_heads():
    """Of two groups the better one loses a third of its worth with one head, and goes."""
    heads = torch.tensor([1.0, 9, 9, 5, 5, 5, 9, 9, 9, 9, 9, 9]).double()
    groups = torch.tensor([100.0, 105, 1000, 1000]).double()
    layer = _layer(torch.ones(WIDTH).double(), heads, groups)
    limits = _limits(kinds=("heads", "kv_groups"), attention={(4, 2), (3, 2)})
    kept = allocate([layer], [[0]], limits, GROUPS * HEAD + GROUP - HEAD)
    assert kept.heads[0].tolist() == [[1, 2], [7, 8], [10, 11]]


def test_ties_break_by_index():
    flat = _layer(*(torch.ones(count).double() for count in (WIDTH, 12, 4)))
    limits = _limits(kinds=("neurons",))
    kept = allocate([flat] * LAYERS, TOGETHER, limits, LAYERS * 8 * NEURON)
    assert kept.neurons[0].tolist() == list(range(8, WIDTH))
    first = allocate([flat] * LAYERS, APART, limits, 8 * NEURON)
    assert [len(t) for t in first.neurons] == [WIDTH - 8, WIDTH, WIDTH]
    kept = allocate([flat] * LAYERS, TOGETHER, _limits(kinds=("heads",)), LAYERS * GROUPS * HEAD)
    assert kept.heads[0].tolist() == [[1, 2], [4, 5], [7, 8], [10, 11]]
    kept = allocate([flat] * LAYERS, TOGETHER, _limits(kinds=("kv_groups",)), LAYERS * GROUP)
    assert kept.heads[0].tolist() == [[3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize("pools", [TOGETHER, APART])
def test_a_target_below_the_floors_is_an_error_that_says_so(pools):
    whole = LAYERS * (WIDTH * NEURON + GROUPS * GROUP)
    with pytest.raises(InputError, match="allow only"):
        allocate(_units(1), pools, _limits(neuron_floor=32), whole - 1)
