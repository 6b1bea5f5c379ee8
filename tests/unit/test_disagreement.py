"""The report on domains: correlations of ranks, and units that only one domain needs."""

import json

import pytest
import torch

from pruneflow.pruning import domain_disagreement
from pruneflow.pruning.domain_disagreement import disagreement
from pruneflow.pruning.scores import Scores


def _scores(domains, *layers):
    """The same layers, ``[domains, units]``, for every kind."""
    tensors = [torch.tensor(layer, dtype=torch.double) for layer in layers]
    return Scores(domains, {kind: tensors for kind in ("neurons", "heads", "kv_groups")}, {})


def test_correlations_are_of_ranks_pooled_and_within_layers():
    scores = _scores(
        ["a", "b"],
        [[1, 2, 3, 4], [1, 20, 300, 4000]],  # the same order
        [[10, 20, 30, 40], [-1, -2, -3, -4]],  # the opposite
    )
    (pair,) = disagreement(scores)["kinds"]["neurons"]["correlations"]
    assert pair["domains"] == ["a", "b"]
    assert pair["within_layers"] == pytest.approx(0)
    # Ranks by b of the units in a's order: 5..8, then 4..1; sum of squared differences 64 + 52... .
    ranks_a, ranks_b = range(1, 9), [5, 6, 7, 8, 4, 3, 2, 1]
    squares = sum((a - b) ** 2 for a, b in zip(ranks_a, ranks_b, strict=True))
    assert pair["pooled"] == pytest.approx(1 - 6 * squares / (8 * 63))


def test_every_two_domains_are_compared_whatever_their_scale():
    layer = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)).double()
    scaled = layer * torch.tensor([[1.0], [1e6], [1e-6]]).double()
    report, other = (disagreement(_scores(["a", "b", "c"], x.tolist())) for x in (layer, scaled))
    assert report == other
    pairs = [pair["domains"] for pair in report["kinds"]["heads"]["correlations"]]
    assert pairs == [["a", "b"], ["a", "c"], ["b", "c"]]


def test_a_unit_that_only_one_domain_needs_is_counted_and_named():
    scores = _scores(
        ["prose", "code", "maths"],
        # Unit 2 is code's best and low for the others; unit 7 is everyone's.
        [[1, 2, 3, 4, 5, 6, 7, 8], [3, 2, 9, 1, 5, 6, 4, 8], [4, 3, 1, 2, 5, 6, 7, 8]],
        [[1, 2, 3, 4, 5, 6, 7, 8]] * 3,
    )
    alone = disagreement(scores)["kinds"]["neurons"]["only_one_domain"]
    assert alone["code"] == {"units": 1, "share": 1 / 16, "examples": [[0, 2]]}
    assert alone["prose"] == alone["maths"] == {"units": 0, "share": 0, "examples": []}


def test_examples_are_the_widest_gaps(monkeypatch):
    monkeypatch.setattr(domain_disagreement, "EXAMPLES", 1)
    # In each layer code's best unit is the others' lowest; the wider layer has the wider gap.
    narrow = [[1, 2, 3, 4], [2, 9, 1, 3]]
    wide = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 2, 3, 4, 5, 6, 7, 8]]
    scores = _scores(["prose", "code"], narrow, wide)
    code = disagreement(scores)["kinds"]["heads"]["only_one_domain"]["code"]
    assert code["units"] == 2
    assert code["examples"] == [[1, 0]]


def test_ties_are_no_need():
    scores = _scores(["a", "b"], [[5, 5, 5, 5], [0, 0, 1, 2]])
    alone = disagreement(scores)["kinds"]["neurons"]["only_one_domain"]
    assert [alone[name]["units"] for name in ("a", "b")] == [0, 0]


@pytest.mark.parametrize(
    "scores",
    [
        _scores(["all"], [[1, 2, 3, 4]]),
        _scores(["a", "b"], [[0, 0, 0], [1, 2, 3]]),
        _scores(["a", "b"], [[1], [2]]),
    ],
    ids=["one domain", "no variation", "one unit"],
)
def test_what_is_undefined_is_none_and_never_nan(scores):
    report = disagreement(scores)
    json.dumps(report, allow_nan=False)
    for kind in report["kinds"].values():
        assert all(
            pair["pooled"] is None and pair["within_layers"] is None
            for pair in kind["correlations"]
        )
        assert all(found["units"] == 0 for found in kind["only_one_domain"].values())
