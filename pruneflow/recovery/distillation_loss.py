"""What the student is pulled towards: the teacher's distribution over the next token.

With p and q the softmax of the teacher's and the student's logits divided by the temperature t,
the loss of a token is ``t^2 KL(p || q)`` (Hinton et al., arXiv 1503.02531), and its gradient in
the student's logits is ``t (q - p)``: written out here, so that it is exactly 0 where the two
agree, and so that float32 copies of logits exist only a chunk at a time.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import pad

from pruneflow.settings.recovery import RecoverySettings

# Logits whose float32 copies exist at one time: 128 MiB each, about six of them.
CHUNK = 1 << 25
UNLABELLED = -100


def loss_and_gradient(
    student: torch.Tensor,
    teacher: torch.Tensor,
    tokens: torch.Tensor,
    sequences: int,
    settings: RecoverySettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One micro-batch's part of the loss of a step, and its gradient.

    Args:
        student: logits ``[n, T, vocabulary]``; nothing is differentiated through them here.
        teacher: logits of the same shape.
        tokens: the ids behind them, ``[n, T]``.
        sequences: sequences in the whole step. A step's loss is the mean over its ``sequences * T``
            positions, or, of the hard labels, over the ``sequences * (T - 1)`` that have one.
        settings: `temperature` and `hard_label_share`.

    Returns:
        The part of the loss, a float64 scalar, and the gradient in `student`, like it in type.
    """
    length, hard, heat = tokens.shape[1], settings.hard_label_share, settings.temperature
    soft_weight = (1 - hard) / (sequences * length)
    hard_weight = hard / (sequences * (length - 1))
    labels = pad(tokens[:, 1:], (0, 1), value=UNLABELLED).flatten()
    total = torch.zeros((), dtype=torch.double, device=student.device)
    gradient = torch.empty_like(student)
    rows = gradient.flatten(0, 1)
    for part, mine, theirs in _chunks(student, teacher):
        log_q, log_p = (mine / heat).log_softmax(-1), (theirs / heat).log_softmax(-1)
        p = log_p.exp()
        total += soft_weight * heat**2 * (p * (log_p - log_q)).sum(-1).double().sum()
        slope = log_q.exp().sub_(p).mul_(soft_weight * heat)
        if hard:
            labelled = labels[part] != UNLABELLED
            targets = labels[part].clamp_min(0).unsqueeze(1)
            log_q = mine.log_softmax(-1)
            total -= hard_weight * log_q.gather(1, targets)[labelled].double().sum()
            misses = log_q.exp().scatter_add_(1, targets, -torch.ones_like(log_q[:, :1]))
            slope += hard_weight * misses * labelled.unsqueeze(1)
        rows[part] = slope.to(rows.dtype)
    return total, gradient


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """``KL(teacher || student)`` in nats at temperature 1, summed over all positions.

    Args:
        student: logits ``[n, T, vocabulary]``.
        teacher: logits of the same shape.
    """
    total = 0.0
    for _, mine, theirs in _chunks(student, teacher):
        log_q, log_p = mine.log_softmax(-1), theirs.log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
    return total


def _chunks(
    student: torch.Tensor, teacher: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Yield (rows, student's, teacher's) in float32 or wider, some rows at a time."""
    mine, theirs = student.detach().flatten(0, 1), teacher.flatten(0, 1)
    dtype = torch.promote_types(student.dtype, torch.float32)
    step = max(1, CHUNK // mine.shape[1])
    for start in range(0, len(mine), step):
        part = slice(start, start + step)
        yield part, mine[part].to(dtype), theirs[part].to(dtype)
