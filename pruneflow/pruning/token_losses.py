"""Losses of tokens, and the objectives that a pass can differentiate."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy


def losses_of(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token after a sequence's first: logits ``[n, T - 1, V]`` for it, and its loss.

    Args:
        logits: of every position, ``[n, T, V]``.
        tokens: ``[n, T]``.
    """
    predicting = wide(logits[:, :-1])
    return predicting, _cross_entropy(predicting, tokens[:, 1:])


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in float32; float64 stays float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# An objective maps the logits [n, T, V], the loss of each true token [n, T] and uniform noise
# [n, T] to the token losses to differentiate, [n, T].


def _text(_logits: torch.Tensor, losses: torch.Tensor, _noise: torch.Tensor) -> torch.Tensor:
    """The loss of the text itself: with it mask-Fisher is the empirical Fisher information."""
    return losses


def _sampled(logits: torch.Tensor, losses: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The loss of labels drawn from the model: the true Fisher information."""
    drawn = []
    for row, uniform in zip(logits.detach(), noise, strict=True):  # [T, V] at a time
        cumulative = row.softmax(-1).cumsum(-1)
        # The last entry is 1 but for rounding: scaled, a draw is always below it.
        drawn.append(torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:]))
    targets = torch.stack(drawn).squeeze(-1).clamp_max(logits.shape[-1] - 1)
    return _cross_entropy(logits, targets)


GRADIENTS = {"text": _text, "sampled": _sampled}


def noise(shape: torch.Size, seed: int, first: int, draw: int) -> torch.Tensor:
    """Uniform numbers for sequences `first` and after; they do not depend on the batch."""
    generators = [np.random.default_rng([seed, first + i, draw]) for i in range(shape[0])]
    return torch.from_numpy(np.stack([generator.random(shape[1]) for generator in generators]))
