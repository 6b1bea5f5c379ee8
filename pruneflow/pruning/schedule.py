"""The pruning schedule: targets of the rounds, and weights of the domains in each."""

import math
from collections.abc import Mapping
from typing import Literal, get_args

from pruneflow.errors import InputError
from pruneflow.records import DomainLoss
from pruneflow.settings.pruning import Target

Schedule = Literal["linear", "geometric"]
SCHEDULES = get_args(Schedule)


def targets(goal: Target, rounds: int, schedule: str, dense: int | None = None) -> list[Target]:
    """The target of each round on the way to `goal`.

    Args:
        goal: target of the last round.
        rounds: number of rounds, 1 to 100.
        schedule: ``linear`` removes the same amount in each round, ``geometric`` the same share
            of what the previous round kept.
        dense: parameters or bytes of the dense model; needed for such a goal.

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
        kept = goal.parameters or goal.bytes
        assert kept is not None and dense is not None
        if kept >= dense:
            raise InputError(
                f"the target is {goal}, and the dense model has {dense:,}: ask for less"
            )
        removed = 1 - kept / dense
    planned = []
    for step in range(1, rounds):
        linear, geometric = removed * step / rounds, 1 - (1 - removed) ** (step / rounds)
        share = linear if schedule == "linear" else geometric
        if dense is None:
            planned.append(Target(ratio=round(share, 6)))
        else:
            unit = "bytes" if goal.parameters is None else "parameters"
            planned.append(Target(**{unit: round((1 - share) * dense)}))
    return [*planned, goal]


def next_weights(
    weights: Mapping[str, float],
    dense: Mapping[str, DomainLoss],
    pruned: Mapping[str, DomainLoss],
    feedback: float,
) -> dict[str, float]:
    """Give domains that lost more than the mean a higher weight (docs/method.md, step 5).

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
