"""Numbers with bounds: reading, sums and multiples."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.prices.uncertain import Uncertain, exactly, read, total

RANGES = st.tuples(*[st.floats(0, 1e9)] * 3).map(lambda three: Uncertain(*(sorted(three)[i] for i in (1, 0, 2))))


def test_what_a_price_may_look_like() -> None:
    assert read(5) == Uncertain(5, 5, 5)
    assert read({"value": 5, "low": 4, "high": 8}) == Uncertain(5, 4, 8)
    assert read({"value": 8, "relative": 0.25}) == Uncertain(8, 6, 10)


@pytest.mark.parametrize(
    "raw",
    ["5", True, None, {}, {"low": 1, "high": 2}, {"value": 5, "low": 6, "high": 7}, {"value": 5, "low": 1},
     {"value": 1, "relative": 1.5}, {"value": float("nan")}, {"value": float("inf")}, -1, {"value": "5"}],
)  # fmt: skip
def test_what_it_may_not(raw: Any) -> None:
    with pytest.raises(ValueError, match="write a number"):
        read(raw)


def test_sums_and_multiples_by_hand() -> None:
    one, other = Uncertain(3, 2, 5), Uncertain(10, 10, 20)
    assert one + other == Uncertain(13, 12, 25)
    assert one * other == Uncertain(30, 20, 100)
    assert one * 2 == Uncertain(6, 4, 10)
    assert total([one, one, exactly(1)]) == Uncertain(7, 5, 11)
    assert total([]) == exactly(0)


@given(RANGES, RANGES, st.floats(0, 10))
def test_the_value_stays_between_the_ends(one: Uncertain, other: Uncertain, by: float) -> None:
    for number in (one + other, one * other, (one + other) * by):
        assert number.low <= number.value <= number.high
