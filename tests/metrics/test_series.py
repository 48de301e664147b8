"""Counters and rates over stretches of time, by hand and for any samples."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.metrics.series import Series, series_of

S = 10**9


def series(*points: tuple[float, float]) -> Series:
    return Series(times_ns=np.array([round(t * S) for t, _ in points]), values=np.array([v for _, v in points]))


def test_a_counter_between_its_samples() -> None:
    """10 J by 1 s, 30 J by 2 s, 30 J by 4 s: from 0.5 to 3 s it rose from 5 to 30."""
    counter = series((0, 0.0), (1, 10.0), (2, 30.0), (4, 30.0))
    assert counter.increase((S // 2, 3 * S)) == pytest.approx(25)
    assert counter.increase((S // 2, 3 * S // 4)) == pytest.approx(2.5)


def test_a_rate_with_the_samples_that_bracket_the_stretch() -> None:
    """100 W at 0, 300 W at 1 s, 300 W at 3 s: from 0.5 s (200 W) to 2 s 0.5 x 250 + 1 x 300; in one gap likewise."""
    power = series((0, 100.0), (1, 300.0), (3, 300.0))
    assert power.integral((S // 2, 2 * S)) == pytest.approx(125 + 300)
    assert power.integral((S // 4, S // 2)) == pytest.approx(0.25 * (150 + 200) / 2)


def test_what_is_covered_and_counted() -> None:
    known = series((1, 0.0), (2, 1.0), (3, 1.0))
    assert known.covers((S, 3 * S)) and not known.covers((S - 1, 2 * S)) and not known.covers((2 * S, 3 * S + 1))
    assert known.inside((S, 3 * S)) == 3 and known.inside((S + 1, 2 * S)) == 1
    assert not known.falls and series((0, 1.0), (1, 0.5)).falls
    assert not series((1, 0.0)).covers((S, S)), "one reading spans nothing"


def test_the_period_is_that_of_changes_not_of_samples() -> None:
    """Sampled every 0.1 s, it changes every 0.2 s."""
    assert series(*((index / 10, float(index // 2)) for index in range(20))).update_period_s == pytest.approx(0.2)
    assert series((0, 1.0), (1, 2.0)).update_period_s is None
    assert series((0, 1.0), (2, 2.0), (4, 3.0), (6, 4.0)).update_period_s is None  # as often as it is read, or more


def test_null_readings_are_left_out_and_times_keep_their_digits() -> None:
    """Two years after boot, one float holds no single ns."""
    at = 63_072_000 * S
    table = pa.table({"time_ns": [at + 2, at, at + 1], "x": pa.array([4.0, 0.0, None])})
    found = series_of(table, "x")
    assert found.times_ns.tolist() == [at, at + 2] and found.values.tolist() == [0.0, 4.0]
    assert found.increase((at, at + 1)) == 2.0


@given(
    steps=st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e3)), min_size=2, max_size=20),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_adjoining_stretches_add_up(steps: list[tuple[int, float]], cuts: tuple[float, float, float]) -> None:
    times = np.cumsum([step for step, _ in steps])
    rate = Series(times_ns=times, values=np.array([value for _, value in steps]))
    counter = Series(times_ns=times, values=np.cumsum(rate.values))
    span = int(times[-1] - times[0])
    first, middle, last = (int(times[0]) + round(cut * span) for cut in sorted(cuts))
    for measure in (rate.integral, counter.increase):
        parts = measure((first, middle)) + measure((middle, last))
        assert parts == pytest.approx(measure((first, last)), rel=1e-6, abs=1e-6)
