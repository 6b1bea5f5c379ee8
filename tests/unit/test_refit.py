"""The refit is the least-squares optimum."""

import pytest
import torch

from pruneflow.errors import PruneflowError
from pruneflow.pruning.refit import refit_columns


def _problem(tokens=200, channels=12, outputs=5):
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.double)
    x = torch.randn(tokens, channels, generator=generator, dtype=torch.double) @ mixing
    weight = torch.randn(outputs, channels, generator=generator, dtype=torch.double)
    return x, weight


def test_the_refit_is_the_least_squares_optimum():
    x, weight = _problem()
    keep = torch.tensor([0, 2, 3, 5, 8, 11])
    refitted = refit_columns(weight, x.T @ x, keep, ridge=1e-12)
    best = torch.linalg.lstsq(x[:, keep], x @ weight.T).solution.T
    assert torch.allclose(refitted, best, rtol=1e-6, atol=1e-8)


def test_no_small_change_of_the_refit_lowers_the_error():
    x, weight = _problem()
    keep = torch.tensor([1, 2, 6, 7, 9])
    refitted = refit_columns(weight, x.T @ x, keep, ridge=1e-12)

    def error(candidate):
        return float((x @ weight.T - x[:, keep] @ candidate.T).square().sum())

    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        change = 1e-2 * torch.randn(refitted.shape, generator=generator, dtype=torch.double)
        assert error(refitted + change) > error(refitted)
    assert error(refitted) < 0.9 * error(weight[:, keep])


def test_keeping_everything_changes_nothing():
    x, weight = _problem()
    refitted = refit_columns(weight, x.T @ x, torch.arange(12), ridge=0.01)
    assert torch.allclose(refitted, weight)


def test_a_channel_that_never_fired_keeps_its_weight():
    x, weight = _problem()
    x[:, 3] = 0
    keep = torch.tensor([0, 3, 4, 5])
    refitted = refit_columns(weight, x.T @ x, keep, ridge=0.01)
    assert torch.equal(refitted[:, 1], weight[:, 3])


def test_silence_on_all_kept_channels_keeps_the_old_weights():
    weight = _problem()[1]
    refitted = refit_columns(weight, torch.zeros(12, 12), torch.tensor([4, 5]), ridge=0.01)
    assert torch.equal(refitted, weight[:, [4, 5]])


def test_a_singular_gram_falls_back_to_a_larger_ridge_and_says_so(caplog):
    x, weight = _problem(tokens=2)
    refitted = refit_columns(weight, x.T @ x, torch.arange(8), ridge=1e-19)
    assert torch.isfinite(refitted).all()
    assert "Cholesky failed" in caplog.text


def test_a_gram_with_nan_is_an_error():
    weight = _problem()[1]
    with pytest.raises(PruneflowError, match="NaN"):
        refit_columns(weight, torch.full((12, 12), torch.nan), torch.arange(3), ridge=0.01)
