"""Least-squares refit of the kept columns of a consumer.

With W ``[d_out, m]``, its input X ``[T, m]`` and ``H = X^T X``, the kept set S gets
``W_S <- W_S + W_R H_RS (H_SS + lambda I)^-1`` with R the removed channels: of all weights on the
kept channels, those whose output is nearest to the old one on the calibration tokens, the ridge
pulling towards the old weights (so keeping everything changes nothing). No biases are added, so
that every architecture can hold the result.
"""

import logging
from typing import TYPE_CHECKING

from pruneflow.errors import PruneflowError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def refit_columns(
    weight: "torch.Tensor", gram: "torch.Tensor", keep: "torch.Tensor", ridge: float
) -> "torch.Tensor":
    """Weights on the kept channels that best reproduce the consumer's output.

    Args:
        weight: ``[d_out, m]``, any floating type.
        gram: ``H = X^T X``, ``[m, m]``, float32 or float64.
        keep: indices of the kept channels, ``[k]``.
        ridge: lambda as a share of the mean diagonal of H_SS.

    Returns:
        ``[d_out, k]`` float64. Where no token ever reached the kept channels, their old weights.

    Raises:
        PruneflowError: H holds NaN or infinity.
    """
    import torch

    keep = keep.to(gram.device)
    target = weight.double().to(gram.device)
    h = gram.double()
    if not bool(torch.isfinite(h).all()):
        raise PruneflowError("the Gram matrix of a layer holds NaN or infinity")
    kept = h[keep][:, keep]
    scale = float(kept.diagonal().mean())
    if scale == 0.0:
        return target[:, keep]
    # W_S as a correction to the old columns: a channel that is never active keeps its weight.
    removed = torch.ones(len(h), dtype=torch.bool, device=h.device)
    removed[keep] = False
    right = h[keep][:, removed] @ target[:, removed].T  # [k, d_out]
    identity = torch.eye(len(kept), dtype=torch.double, device=h.device)
    for attempt in range(8):
        factor, failed = torch.linalg.cholesky_ex(kept + ridge * 10**attempt * scale * identity)
        if int(failed) == 0:
            return target[:, keep] + torch.cholesky_solve(right, factor).T
        log.warning("Cholesky failed with ridge %g; taking ten times as much", ridge * 10**attempt)
    raise PruneflowError("the Gram matrix of a layer is not positive definite at any ridge tried")
