"""How a descent is divided into rounds, and what a round's domains weigh."""

import math
from collections.abc import Mapping
from typing import Literal

from pruneflow.errors import InputError
from pruneflow.records import DomainLoss
from pruneflow.settings.pruning import Target

Schedule = Literal["linear", "geometric"]
SCHEDULES: tuple[Schedule, ...] = ("linear", "geometric")


def targets(goal: Target, rounds: int, schedule: str, whole: int | None = None) -> list[Target]:
    """The target of each round on the way to `goal`.

    Args:
        goal: of the last round.
        rounds: how many, 1 to 100.
        schedule: ``linear`` removes as much in each round, ``geometric`` the same share of what
            the round before left.
        whole: what the dense model has of what `goal` counts; needed for parameters and bytes.

    Raises:
        InputError: a value is out of range.
    """
    if not 1 <= rounds <= 100:
        raise InputError(f"the number of rounds is {rounds}: give 1 to 100")
    if schedule not in SCHEDULES:
        raise InputError(f"there is no schedule {schedule}: use {' or '.join(SCHEDULES)}")
    if goal.ratio is not None:
        removed = goal.ratio
    else:
        left = goal.parameters or goal.bytes or 0
        if whole is None:
            raise ValueError("a target in parameters or bytes needs the dense model's")
        if left >= whole:
            raise InputError(
                f"the target is {goal}, and the dense model has {whole:,}: ask for less"
            )
        removed = 1 - left / whole
    steps = range(1, rounds)
    if schedule == "linear":
        shares = [removed * step / rounds for step in steps]
    else:
        shares = [1 - (1 - removed) ** (step / rounds) for step in steps]
    return [*(_target(goal, share, whole) for share in shares), goal]


def _target(goal: Target, share: float, whole: int | None) -> Target:
    if goal.ratio is not None:
        return Target(ratio=round(share, 6))
    left = round((1 - share) * (whole or 0))
    return Target(parameters=left) if goal.parameters is not None else Target(bytes=left)


def next_weights(
    weights: Mapping[str, float],
    dense: Mapping[str, DomainLoss],
    pruned: Mapping[str, DomainLoss],
    feedback: float,
) -> dict[str, float]:
    """Weigh domains that lost more than the mean more in the next round (docs/method.md, step 5).

    With D the rise of a domain's held-out loss over the mean rise: ``w <- w exp(feedback max(D,
    0))``, renormalised to a mean of 1.

    Args:
        weights: of this round; 1 when absent.
        dense: held-out losses of the dense model by domain.
        pruned: of the round's model, on the same text.
        feedback: eta; 0 leaves the proportions as they are.
    """
    rises = {
        domain: pruned[domain]["nll"] / pruned[domain]["tokens"]
        - dense[domain]["nll"] / dense[domain]["tokens"]
        for domain in dense
    }
    mean = math.fsum(rises.values()) / len(rises)
    raised = {
        domain: weights.get(domain, 1.0) * math.exp(feedback * max(rise - mean, 0.0))
        for domain, rise in rises.items()
    }
    total = math.fsum(raised.values()) / len(raised)
    return {domain: weight / total for domain, weight in raised.items()}
