"""Intervals: Student t over runs, bootstrap over requests. Plain arithmetic on numbers; it knows no record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import atan2, cos, inf, pi, sin, sqrt
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2000


def student_t_within(half_width: float, standard_error: float, degrees: int) -> float:
    """Probability that a Student-t variable stays within +- half_width / standard_error.

    The finite series for whole degrees of freedom: Abramowitz & Stegun, 26.7.3 and 26.7.4.
    """
    angle = atan2(half_width, standard_error * sqrt(degrees))
    square = cos(angle) ** 2
    odd = degrees % 2
    term = cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


@cache
def student_t_quantile(degrees: int) -> float:
    """t with P(|T| <= t) = CONFIDENCE, by bisection of `student_t_within`; 12.706 for one degree of freedom."""
    low, high = 0.0, 1000.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_within(middle, 1.0, degrees) < CONFIDENCE else (low, middle)
    return high


def interval_of_runs(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % Student-t interval of the mean of independent runs; None with fewer than two."""
    if len(values) < 2:
        return None
    half = student_t_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def half_width_over_mean(values: Sequence[float]) -> float:
    """Half of the interval's width, relative to the mean; infinite with fewer than two values or a mean of 0."""
    interval = interval_of_runs(values)
    mean = fmean(values) if values else 0.0
    return inf if interval is None or mean == 0 else (interval[1] - interval[0]) / 2 / abs(mean)


def bootstrap_interval(
    samples: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], float], seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile bootstrap of `statistic`, resampling with replacement (B. Efron, 1979); None for one sample."""
    if len(samples) < 2:
        return None
    draw = np.random.default_rng(seed)
    found = [statistic(draw.choice(samples, len(samples))) for _ in range(RESAMPLES)]
    low, high = np.percentile(found, [100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2])
    return float(low), float(high)
