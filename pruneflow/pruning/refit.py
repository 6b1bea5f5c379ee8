"""Least-squares refit of the kept columns of a consumer.

With W ``[d_out, m]``, its input X ``[T, m]`` and ``H = X^T X``, the kept set S gets
``W_S <- W_S + (W_R H_RS + D^T X_S) (H_SS + lambda I)^-1`` with R the removed channels and D
``[T, d_out]`` the wanted change of the output: the weights on the kept channels whose output is
nearest to ``W x + D`` on the calibration tokens, with a ridge towards the old weights (keeping all
channels, with D = 0, changes nothing). No biases are added, so every architecture can store the
result.

D closes a part of the gap between the pruned and the unpruned model's hidden states, at the place
where the consumer's output is added to them. Closing the full gap overfits the calibration text; a
part of it is best (docs/method.md).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from pruneflow.compute.ranks import joined
from pruneflow.errors import PruneflowError
from pruneflow.pruning.block_stream import Seen
from pruneflow.pruning.token_losses import wide

log = logging.getLogger(__name__)

# A token whose squared norm is more than this many times its sequence's median counts as if it
# were that: the first token of a sequence carries activations hundreds of times the others'.
OUTLIER = 20.0


class Normal(NamedTuple):
    """The normal equations of a consumer.

    Attributes:
        gram: ``H = X^T X``, ``[m, m]`` float64.
        drift: ``X^T D``, ``[m, d_out]`` float64; None where D is zero.
    """

    gram: Tensor
    drift: Tensor | None


class System(NamedTuple):
    """The equations of the kept channels alone, for a correction to their old weights.

    They are solved for a correction, so that a channel that is never active keeps its weight.

    Attributes:
        gram: ``H_SS``, ``[k, k]`` float64.
        right: ``H_SR W_R^T + X_S^T D``, ``[k, d_out]`` float64.
        old: the old weights, ``[d_out, k]`` float64.
    """

    gram: Tensor
    right: Tensor
    old: Tensor


def normal_equations(
    weight: Tensor, seen: Iterator[Seen], towards: Iterator[Seen] | None, share: float
) -> Normal:
    """Sum H and X^T D over a calibration set, all ranks' batches.

    Args:
        weight: the consumer's, ``[d_out, m]``.
        seen: inputs and outputs of the consumer in the pruned model, batch by batch; the
            consumer itself is not cut yet.
        towards: the same in the unpruned model, or None to keep the old outputs.
        share: share of the gap to the unpruned model to close, 0 to 1.

    Raises:
        PruneflowError: activations contain NaN or infinity.
    """
    out, channels = weight.shape
    # TF32 keeps eleven bits of a factor, bfloat16 has eight: on a GPU its products are exact.
    exact = "high" if weight.dtype == torch.bfloat16 else "highest"
    gram = torch.zeros(channels, channels, dtype=torch.double, device=weight.device)
    drift = None if towards is None else gram.new_zeros(channels, out)
    for batch in seen:
        x = wide(batch.inputs).flatten(0, 1)
        scaled = x * token_weights(batch.inputs).flatten()[:, None]
        with _precision(exact):
            gram += scaled.T @ x  # batches add up in float64
            if towards is not None and drift is not None:
                gap = wide(next(towards).after) - wide(batch.after)
                drift += scaled.T @ (share * gap).flatten(0, 1)
    for total in (gram, drift):
        if total is not None:
            joined().sum(total)
    if not bool(torch.isfinite(gram).all()):
        raise PruneflowError("the Gram matrix of a layer contains NaN or infinity")
    return Normal(gram, drift)


@contextmanager
def _precision(name: str) -> Iterator[None]:
    """Set torch's float32 matmul precision within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def token_weights(x: Tensor) -> Tensor:
    """Weight of each token, ``[n, T]``, from inputs ``[n, T, m]``: 1, or less for outliers."""
    norms = wide(x).square().sum(-1)
    most = OUTLIER * norms.median(1, keepdim=True).values
    return (most / norms.clamp_min(1e-30)).clamp(max=1.0)


def system_of(weight: Tensor, normal: Normal, keep: Tensor) -> System:
    """The system of the kept channels ``[k]``; the normal equations may be freed afterwards."""
    h, keep = normal.gram, keep.to(normal.gram.device)
    stays = torch.zeros(len(h), dtype=torch.bool, device=h.device)
    stays[keep] = True
    removed = (~stays).nonzero().flatten()
    right = h[keep[:, None], removed] @ weight[:, removed].double().T
    if normal.drift is not None:
        right += normal.drift[keep]
    return System(h[keep[:, None], keep], right, weight[:, keep].double())


def solve(system: System, ridge: float) -> Tensor:
    """Weights on the kept channels that best reproduce the consumer's output.

    Args:
        system: the equations of the kept channels; the diagonal of `gram` is overwritten.
        ridge: lambda as a share of the mean diagonal of H_SS.

    Returns:
        ``[d_out, k]`` float64. Where no token ever reached the kept channels, their old weights.

    Raises:
        PruneflowError: H is not positive definite at any ridge tried.
    """
    gram, right, old = system
    scale = float(gram.diagonal().mean()) if len(gram) else 0.0
    if scale == 0.0:
        return old
    diagonal = gram.diagonal().clone()
    for attempt in range(8):
        gram.diagonal().copy_(diagonal + ridge * 10**attempt * scale)  # in place: it is large
        factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed) == 0:
            return old + torch.cholesky_solve(right, factor).T
        log.warning("Cholesky failed with ridge %g; trying ten times as much", ridge * 10**attempt)
    raise PruneflowError("the Gram matrix of a layer is not positive definite at any ridge tried")
