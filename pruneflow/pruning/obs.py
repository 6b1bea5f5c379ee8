"""Optimal Brain Surgeon: the cost of removing a unit when the others are refitted."""

from collections.abc import Collection

import torch

from pruneflow.errors import PruneflowError


def removal_errors(
    weight: torch.Tensor, gram: torch.Tensor, widths: Collection[int], ridge: float
) -> list[torch.Tensor]:
    """Half the squared output error that removing a unit costs after a least-squares refit.

    With ``P = (H + lambda I)^-1`` and ``B_g`` the rows of ``B = W^T`` that belong to unit g:
    ``1/2 tr(B_g^T (P_gg)^-1 B_g)``, for a single channel ``1/2 |W_:j|^2 / P_jj`` (Optimal Brain
    Surgeon; for groups OSSCAR, arXiv 2403.12983).

    Args:
        weight: ``[d_out, m]``.
        gram: ``H = X^T X``, ``[m, m]``.
        widths: channels per unit, for each way to divide the m channels into units.
        ridge: lambda as a share of the mean diagonal of H.

    Returns:
        For each of `widths` ``[m / width]`` float64 on the CPU.

    Raises:
        PruneflowError: H is NaN or infinite, or not positive definite with the ridge.
    """
    h = gram.double()
    scale = h.diagonal().mean()
    if float(scale) == 0.0:  # never active: removing it costs nothing
        return [h.new_zeros(len(h) // width).cpu() for width in widths]
    h = h + ridge * scale * torch.eye(len(h), dtype=h.dtype, device=h.device)
    factor, failed = torch.linalg.cholesky_ex(h)
    if int(failed) != 0 or not bool(torch.isfinite(factor).all()):
        raise PruneflowError("the Gram matrix of a layer is not positive definite, or not finite")
    inverse = torch.cholesky_inverse(factor)
    columns = weight.detach().double().T.to(h.device)
    errors = []
    for width in widths:
        units = len(h) // width
        squares = inverse.unflatten(0, (units, width)).unflatten(2, (units, width))
        own = squares.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # [units, width, width]
        mine = columns.unflatten(0, (units, width))  # [units, width, d_out]
        solved = torch.cholesky_solve(mine, torch.linalg.cholesky(own))
        errors.append(0.5 * (mine * solved).sum((1, 2)).cpu())
    return errors
