"""The refit is the least-squares optimum, towards the old output or part of the way to dense."""

import pytest
import torch

from pruneflow.errors import PruneflowError
from pruneflow.pruning.block_stream import Seen
from pruneflow.pruning.refit import (
    OUTLIER,
    Normal,
    normal_equations,
    solve,
    system_of,
    token_weights,
)


def _problem(tokens=200, channels=12, outputs=5):
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.double)
    x = torch.randn(tokens, channels, generator=generator, dtype=torch.double) @ mixing
    weight = torch.randn(outputs, channels, generator=generator, dtype=torch.double)
    return x, weight


def _normal(x, drift=None):
    return Normal(x.T @ x, None if drift is None else x.T @ drift)


def refitted_columns(weight, normal, keep, ridge):
    return solve(system_of(weight, normal, keep), ridge)


def test_the_refit_is_the_least_squares_optimum():
    x, weight = _problem()
    keep = torch.tensor([0, 2, 3, 5, 8, 11])
    refitted = refitted_columns(weight, _normal(x), keep, ridge=1e-12)
    best = torch.linalg.lstsq(x[:, keep], x @ weight.T).solution.T
    assert torch.allclose(refitted, best, rtol=1e-6, atol=1e-8)


def test_with_a_drift_it_is_the_optimum_for_the_old_output_and_the_drift():
    x, weight = _problem()
    drift = torch.randn(200, 5, generator=torch.Generator().manual_seed(5), dtype=torch.double)
    for keep in (torch.tensor([0, 2, 3, 5]), torch.arange(12)):
        refitted = refitted_columns(weight, _normal(x, drift), keep, ridge=1e-12)
        best = torch.linalg.lstsq(x[:, keep], x @ weight.T + drift).solution.T
        assert torch.allclose(refitted, best, rtol=1e-6, atol=1e-8)


def test_the_ridge_draws_towards_the_old_weights_whatever_the_scale_of_the_inputs():
    x, weight = _problem()
    keep = torch.tensor([0, 2, 3, 5])
    damping = (0.1 * x[:, keep].square().sum(0).mean()).sqrt()
    rows = torch.cat([x[:, keep], damping * torch.eye(4, dtype=torch.double)])
    target = torch.cat([x @ weight.T, damping * weight[:, keep].T])
    best = torch.linalg.lstsq(rows, target).solution.T
    for scale in (1, 1000):
        refitted = refitted_columns(weight, _normal(scale * x), keep, ridge=0.1)
        assert torch.allclose(refitted, best)


def test_keeping_everything_changes_nothing():
    x, weight = _problem()
    refitted = refitted_columns(weight, _normal(x), torch.arange(12), ridge=0.01)
    assert torch.allclose(refitted, weight)


def test_a_channel_that_never_fired_keeps_its_weight():
    x, weight = _problem()
    x[:, 3] = 0
    keep = torch.tensor([0, 3, 4, 5])
    refitted = refitted_columns(weight, _normal(x), keep, ridge=0.01)
    assert torch.equal(refitted[:, 1], weight[:, 3])


def test_silence_on_all_kept_channels_keeps_the_old_weights():
    weight = _problem()[1]
    silent = Normal(torch.zeros(12, 12).double(), None)
    refitted = refitted_columns(weight, silent, torch.tensor([4, 5]), ridge=0.01)
    assert torch.equal(refitted, weight[:, [4, 5]])


def test_a_singular_gram_falls_back_to_a_larger_ridge_and_says_so(caplog):
    x, weight = _problem(tokens=2)
    refitted = refitted_columns(weight, _normal(x), torch.arange(8), ridge=1e-19)
    assert torch.isfinite(refitted).all()
    assert "Cholesky failed" in caplog.text


def _batches(x, after=None):
    """Two batches of sequences of 20 tokens."""
    x = x.view(10, 20, -1)
    after = x if after is None else after.view(10, 20, -1)
    return iter([Seen(x[:4], after[:4]), Seen(x[4:], after[4:])])


def test_normal_equations_are_the_sums_over_all_tokens():
    x, weight = _problem()
    normal = normal_equations(weight, _batches(x), None, 0.0)
    assert normal.drift is None
    assert torch.allclose(normal.gram, x.T @ x)


def test_the_drift_is_a_share_of_the_gap_to_the_unpruned_stream():
    x, weight = _problem()
    here, there = torch.randn(2, 200, len(weight), dtype=torch.double).unbind(0)
    normal = normal_equations(weight, _batches(x, here), _batches(x, there), 0.3)
    assert torch.allclose(normal.drift, x.T @ (0.3 * (there - here)))


def test_an_outlying_first_token_does_not_dominate_the_gram():
    x, weight = _problem()
    spoilt = x.clone().view(10, 20, 12)
    spoilt[:, 0] *= 1000
    normal = normal_equations(weight, _batches(spoilt.view(200, 12)), None, 0.0)
    plain = normal_equations(weight, _batches(x), None, 0.0)
    assert float(normal.gram.trace()) < 3 * float(plain.gram.trace())
    weights = token_weights(spoilt)
    norms = (spoilt.square().sum(-1) * weights)[:, 0]
    assert torch.allclose(norms, OUTLIER * spoilt.square().sum(-1).median(1).values)
    assert float(token_weights(x.view(10, 20, 12)).min()) > 0.5
    keep = torch.tensor([1, 2, 6, 7, 9])
    good, robust = (refitted_columns(weight, n, keep, 0.01) for n in (plain, normal))
    ruined = refitted_columns(weight, _normal(spoilt.view(200, 12)), keep, 0.01)

    def error(candidate):
        return float((x @ weight.T - x[:, keep] @ candidate.T).square().sum())

    assert error(robust) < error(ruined)
    assert error(robust) < 1.5 * error(good)


def test_a_gram_with_nan_is_an_error():
    x, weight = _problem()
    x[7, 3] = torch.nan
    with pytest.raises(PruneflowError, match="NaN"):
        normal_equations(weight, _batches(x), None, 0.0)
