"""Estimates with 95 % intervals by the paired bootstrap.

Units (questions of a task, windows of a domain) are drawn with replacement, both models' results
on a unit together: what is hard for both models does not widen the interval of their difference.
Intervals are percentiles of the draws, moved outwards for few units as the t-distribution asks
("expanded percentiles": T. Hesterberg, What Teachers Should Know About the Bootstrap, The American
Statistician 69, 2015, section 4.2); from a hundred units on that changes next to nothing. Of ten
units or fewer a resample has no tails to take such percentiles from (of 5 windows they would cover
in 91 % of draws, of 3 in 74 %), so draws of means over windows are themselves spread by the same
factor: `pooled`.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy
from pydantic import Field
from scipy.special import ndtr, ndtri, stdtrit
from typing_extensions import TypedDict

CONFIDENCE = 0.95

_CHUNK = 100
"""Draws made at once: a bound on memory."""


class Estimate(TypedDict):
    """A measured value and its 95 % interval."""

    value: Annotated[float, Field(description="The value.")]
    low: Annotated[float | None, Field(description="Lower end; null with too few units.")]
    high: Annotated[float | None, Field(description="Upper end; null with too few units.")]


def draw_means(units: numpy.ndarray, samples: int, seed: int) -> numpy.ndarray:
    """Return the means of `samples` resamples of the units.

    Args:
        units: ``[measures, units]``; columns are drawn.
        samples: how many resamples.
        seed: of the draws.

    Returns:
        ``[measures, samples]``, float64.
    """
    # Equal units are drawn as one kind: answers are 1 or 0, so there are four kinds of them.
    kinds, repeats = numpy.unique(units, axis=1, return_counts=True)
    count = units.shape[1]
    generator = numpy.random.default_rng(seed)
    means = [
        generator.multinomial(count, repeats / count, size=min(_CHUNK, samples - start))
        @ kinds.T
        / count
        for start in range(0, samples, _CHUNK)
    ]
    return numpy.concatenate(means).T


def pooled(
    values: Sequence[float], draws: Sequence[numpy.ndarray], units: Sequence[int]
) -> numpy.ndarray:
    """Return draws of the mean of several measures, spread as few units ask for.

    A resample of n units varies by a factor of (n - 1) / n too little, which is corrected in each
    measure. Student's t is wider than the normal distribution; its degrees of freedom are those of
    B. L. Welch (Biometrika 34, 1947) and F. E. Satterthwaite (Biometrics 2, 1946), n - 1 for one
    measure alone.

    Args:
        values: of the measures, from the units as they are.
        draws: of each measure, ``[samples]``.
        units: how many units each measure has; a single unit gives draws that are not a
            number.
    """
    middle = math.fsum(values) / len(values)
    if min(units) < 2:
        return numpy.full(len(draws[0]), numpy.nan)
    apart = [
        math.sqrt(count / (count - 1)) * (drawn - value)
        for value, drawn, count in zip(values, draws, units, strict=True)
    ]
    variances = numpy.array([numpy.var(one[numpy.isfinite(one)]) for one in apart])
    if not variances.any():
        return middle + numpy.mean(apart, axis=0)
    freedom = variances.sum() ** 2 / (variances**2 / (numpy.array(units) - 1)).sum()
    level = (1 + CONFIDENCE) / 2
    wider = stdtrit(freedom, level) / ndtri(level)  # quantiles of Student's t and of the normal
    return middle + wider * numpy.mean(apart, axis=0)


def estimate(value: float, draws: numpy.ndarray, units: int | None = None) -> Estimate:
    """Return `value` with the interval that its draws give.

    Args:
        value: computed from the units as they are.
        draws: the same computed from each resample, ``[samples]``; draws that are not a number
            (a ratio to nothing) are left out.
        units: how many units were drawn from, for the t-distribution; with one alone there is no
            interval. None where `pooled` has seen to that.
    """
    known = draws[~numpy.isnan(draws)]
    if units == 1 or not len(known):
        return {"value": value, "low": None, "high": None}
    tail = (1 - CONFIDENCE) / 2
    if units is not None:
        tail = float(ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, tail)))
    # The k-th of B sorted draws is taken for the quantile k / (B + 1), so that few resamples do not
    # narrow the interval (type 6 of Hyndman and Fan). Between two infinities there is no number.
    with numpy.errstate(invalid="ignore"):
        low, high = numpy.quantile(known, [tail, 1 - tail], method="weibull")
    ends = [float(end) if math.isfinite(end) else None for end in (low, high)]
    return {"value": value, "low": ends[0], "high": ends[1]}
