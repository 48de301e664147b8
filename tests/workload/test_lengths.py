"""Distributions of lengths, and prefixes that prompts share."""

from math import exp, log
from statistics import mean, median, pstdev
from typing import Any

import pytest
from pydantic import ValidationError

from moecap.workload.base import Drawn
from moecap.workload.synthetic import Synthetic


def drawn(count: int, seed: int = 0, **options: Any) -> list[Drawn]:
    return Synthetic.model_validate(options).draw(count, seed, lambda text: (), 1000)


def test_uniform_lengths_reach_both_ends_and_prompts_are_exactly_that_long() -> None:
    made = drawn(4000, input_tokens={"uniform": [3, 7]}, output_tokens={"uniform": [1, 2]})
    lengths = [len(one.prompt_token_ids) for one in made]
    assert set(lengths) == {3, 4, 5, 6, 7}
    assert mean(lengths) == pytest.approx(5.0, abs=4 * 2**0.5 / 4000**0.5)  # sd of 3..7 is sqrt(2); 4 standard errors
    assert {one.output_tokens for one in made} == {1, 2}


def test_lognormal_lengths_have_the_median_and_the_spread_of_the_logarithm() -> None:
    lengths = [one.output_tokens for one in drawn(4000, input_tokens=1, output_tokens={
        "lognormal": {"median": 500, "sigma": 0.5, "max": 100_000}})]  # fmt: skip
    # standard error of the median of logs: 1.2533 x sigma / sqrt(n); of the deviation: sigma / sqrt(2 n)
    assert log(median(lengths)) == pytest.approx(log(500), abs=4 * 1.2533 * 0.5 / 4000**0.5)
    assert pstdev(map(log, lengths)) == pytest.approx(0.5, abs=4 * 0.5 / 8000**0.5)


def test_lognormal_lengths_are_set_to_their_bounds() -> None:
    shape = {"median": 500, "sigma": 0.5, "min": 400, "max": 600}
    lengths = [one.output_tokens for one in drawn(1000, input_tokens=1, output_tokens={"lognormal": shape})]
    assert (min(lengths), max(lengths)) == (400, 600)
    # a share of P(Z < ln(400/500)/0.5) = P(Z < -0.446) = 0.328 lies at the lower bound
    assert lengths.count(400) / 1000 == pytest.approx(0.328, abs=0.06)
    assert exp(-0.446 * 0.5) == pytest.approx(0.8, abs=1e-3)


def test_prompts_take_shared_prefixes_in_turn_and_differ_after_them() -> None:
    made = drawn(6, input_tokens=20, shared_prefix_tokens=12, num_prefixes=2)
    prompts = [one.prompt_token_ids for one in made]
    assert {len(one) for one in prompts} == {20}
    assert len({one[:12] for one in prompts}) == 2
    assert prompts[0][:12] == prompts[2][:12] == prompts[4][:12]
    assert len({one[12:] for one in prompts}) == 6
    assert drawn(1, seed=1, input_tokens=20, shared_prefix_tokens=12)[0].prompt_token_ids[:12] != prompts[0][:12]


def test_lengths_do_not_change_the_tokens_of_what_is_drawn_before_them() -> None:
    assert drawn(1, input_tokens=5)[0] == drawn(1, input_tokens={"uniform": [5, 5]})[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"input_tokens": 0}, "greater than or equal to 1"),
        ({"input_tokens": {}}, "one of uniform"),
        ({"input_tokens": {"uniform": [7, 3]}}, r"write \[3, 7\]"),
        ({"output_tokens": {"uniform": [1, 2], "lognormal": {"median": 5, "sigma": 1, "max": 9}}}, "one of uniform"),
        ({"output_tokens": {"lognormal": {"median": 5, "sigma": 1, "min": 10, "max": 9}}}, "below min"),
        ({"output_tokens": {"normal": [1, 2]}}, "normal"),
        ({"input_tokens": {"uniform": [8, 9]}, "shared_prefix_tokens": 8}, "prompt of 8 tokens"),
        ({"num_prefixes": 2}, "shared_prefix_tokens"),
    ],
)
def test_lengths_that_can_not_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Synthetic.model_validate(options)
