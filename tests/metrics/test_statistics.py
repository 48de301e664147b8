"""Intervals against printed tables and arithmetic by hand."""

import numpy as np
import pytest

from moecap.metrics.statistics import (
    bootstrap_interval,
    half_width_over_mean,
    interval_of_runs,
    student_t_quantile,
    student_t_within,
)

# Two-sided 95 % quantiles of Student's t, from printed tables.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 10: 2.228, 29: 2.045, 30: 2.042}


@pytest.mark.parametrize(("degrees", "t"), TABLE.items())
def test_student_t_as_in_printed_tables(degrees: int, t: float) -> None:
    assert student_t_within(t, 1.0, degrees) == pytest.approx(0.95, abs=5e-5)
    assert student_t_quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_interval_of_runs_by_hand() -> None:
    """99, 100, 101: s = 1, n = 3: 4.3027 / sqrt(3) = 2.4841 on each side."""
    assert interval_of_runs([99.0, 100.0, 101.0]) == pytest.approx((97.5159, 102.4841), abs=1e-4)
    assert half_width_over_mean([99.0, 100.0, 101.0]) == pytest.approx(0.024841, abs=1e-6)
    assert interval_of_runs([100.0]) is None
    assert half_width_over_mean([100.0]) == half_width_over_mean([]) == half_width_over_mean([-1.0, 1.0]) == np.inf


def test_bootstrap_covers_the_mean_of_a_normal_sample() -> None:
    """Of the mean it must be near mean +- 1.96 s / sqrt(n)."""
    samples = np.random.default_rng(1).normal(10.0, 2.0, 400)
    interval = bootstrap_interval(samples, lambda drawn: float(drawn.mean()))
    assert interval is not None
    half = 1.96 * samples.std(ddof=1) / 20
    assert interval == pytest.approx((samples.mean() - half, samples.mean() + half), abs=0.05)
    assert bootstrap_interval(samples, lambda drawn: float(drawn.mean())) == interval
    assert bootstrap_interval(samples[:1], lambda drawn: float(drawn.mean())) is None
