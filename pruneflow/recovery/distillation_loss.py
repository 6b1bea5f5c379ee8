"""The distillation loss and its gradient.

With p and q the softmax of the teacher's and the student's logits divided by the temperature t,
the loss of a token is ``t^2 KL(p || q)`` (Hinton et al., arXiv 1503.02531), and its gradient with
respect to the student's logits is ``t (q - p)``. It is computed explicitly, so that it is exactly 0
where the two agree, and float32 copies of the logits exist only for a chunk at a time.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import pad

from pruneflow.settings.recovery import RecoverySettings

# Logits in a chunk; each of about six float32 copies takes 128 MiB.
CHUNK = 1 << 25
UNLABELLED = -100


def loss_and_gradient(
    student: torch.Tensor,
    teacher: torch.Tensor,
    tokens: torch.Tensor,
    sequences: int,
    settings: RecoverySettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of one micro-batch in the loss of a step, and its gradient.

    Args:
        student: logits ``[n, T, vocabulary]``; autograd does not record what happens here.
        teacher: logits of the same shape.
        tokens: input ids, ``[n, T]``.
        sequences: sequences in the step, over all micro-batches. The loss of a step is the mean
            over its ``sequences * T`` positions; for hard labels, over ``sequences * (T - 1)``.
        settings: `temperature` and `hard_label_share`.

    Returns:
        The loss, a float64 scalar, and the gradient with respect to `student`, in its data type.
    """
    length, hard = tokens.shape[1], settings.hard_label_share
    temperature = settings.temperature
    soft_weight = (1 - hard) / (sequences * length)
    hard_weight = hard / (sequences * (length - 1))
    labels = pad(tokens[:, 1:], (0, 1), value=UNLABELLED).flatten()
    total = torch.zeros((), dtype=torch.double, device=student.device)
    gradient = torch.empty_like(student)
    rows = gradient.flatten(0, 1)
    for part, student_logits, teacher_logits in _chunks(student, teacher):
        log_q = (student_logits / temperature).log_softmax(-1)
        log_p = (teacher_logits / temperature).log_softmax(-1)
        p = log_p.exp()
        total += soft_weight * temperature**2 * (p * (log_p - log_q)).sum(-1).double().sum()
        slope = log_q.exp().sub_(p).mul_(soft_weight * temperature)
        if hard:
            labelled = labels[part] != UNLABELLED
            targets = labels[part].clamp_min(0).unsqueeze(1)
            log_q = student_logits.log_softmax(-1)
            total -= hard_weight * log_q.gather(1, targets)[labelled].double().sum()
            misses = log_q.exp().scatter_add_(1, targets, -torch.ones_like(log_q[:, :1]))
            slope += hard_weight * misses * labelled.unsqueeze(1)
        rows[part] = slope.to(rows.dtype)
    return total, gradient


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> float:
    """``KL(teacher || student)`` of logits ``[n, T, vocabulary]``, in nats at temperature 1.

    It is summed over all positions.
    """
    total = 0.0
    for _, student_logits, teacher_logits in _chunks(student, teacher):
        log_q, log_p = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
    return total


def _chunks(
    student: torch.Tensor, teacher: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Yield (rows, student logits, teacher logits) in float32 or wider, some rows at a time."""
    student, teacher = student.detach().flatten(0, 1), teacher.flatten(0, 1)
    dtype = torch.promote_types(student.dtype, torch.float32)
    step = max(1, CHUNK // student.shape[1])
    for start in range(0, len(student), step):
        part = slice(start, start + step)
        yield part, student[part].to(dtype), teacher[part].to(dtype)
