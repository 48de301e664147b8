"""Arrival times against what the Gamma distribution says of itself."""

from itertools import pairwise
from statistics import mean, pstdev

import pytest

from moecap.errors import ConfigError
from moecap.records import LoadSpec, Request
from moecap.workload.arrivals import arrival_times_s, with_arrivals

COUNT = 20_000


def gaps_of(rate_per_s: float, burstiness: float, seed: int = 0) -> list[float]:
    times = arrival_times_s(COUNT, rate_per_s, burstiness=burstiness, seed=seed)
    return [later - earlier for earlier, later in pairwise((0.0, *times))]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_variation_of_the_shape(burstiness: float) -> None:
    """Gamma(k, 1/(rate k)): mean 1/rate, standard deviation / mean = 1/sqrt(k). Four standard errors each; that of the
    variation by its kurtosis, 3 + 6/k."""
    gaps = gaps_of(5.0, burstiness)
    variation = burstiness**-0.5
    assert mean(gaps) == pytest.approx(0.2, abs=4 * 0.2 * variation / COUNT**0.5)
    error = ((2 + 6 / burstiness) / 4 / COUNT) ** 0.5 * variation
    assert pstdev(gaps) / mean(gaps) == pytest.approx(variation, abs=6 * error)


def test_a_poisson_process_has_as_many_arrivals_in_a_second_as_their_variance() -> None:
    times = arrival_times_s(COUNT, 10.0, seed=3)
    seconds = int(times[-1])
    counts = [0] * seconds
    for time in times:
        if time < seconds:
            counts[int(time)] += 1
    # mean = variance = 10; standard error of the ratio about sqrt(2 / seconds) = 0.03
    assert pstdev(counts) ** 2 / mean(counts) == pytest.approx(1.0, abs=0.15)


def test_times_increase_and_depend_on_the_seed_alone() -> None:
    times = arrival_times_s(100, 2.0, seed=1)
    assert all(earlier < later for earlier, later in pairwise(times)) and times[0] > 0
    assert times == arrival_times_s(100, 2.0, seed=1)
    assert times != arrival_times_s(100, 2.0, seed=2)
    faster = arrival_times_s(100, 4.0, seed=1)
    assert faster == pytest.approx([time / 2 for time in times])  # the same pattern, squeezed


def requests(*arrivals_s: float | None) -> list[Request]:
    return [
        Request(request_id=f"r{i}", item_index=i, prompt_token_ids=(1,), max_new_tokens=1, arrival_s=at)
        for i, at in enumerate(arrivals_s)
    ]


def test_requests_get_the_times_of_their_load() -> None:
    poisson = with_arrivals(requests(None, None), LoadSpec(arrival="poisson", rate_per_s=2.0), seed=1)
    assert [one.arrival_s for one in poisson] == list(arrival_times_s(2, 2.0, seed=1))
    load = LoadSpec(arrival="burst", rate_per_s=2.0, burstiness=0.5)
    burst = with_arrivals(requests(0.0, 9.0), load, seed=1)  # what a trace recorded is not what was asked
    assert [one.arrival_s for one in burst] == list(arrival_times_s(2, 2.0, burstiness=0.5, seed=1))
    assert with_arrivals(requests(0.0, 9.0), LoadSpec(arrival="trace"), seed=1) == requests(0.0, 9.0)
    assert with_arrivals(requests(0.0, 9.0), LoadSpec(concurrency=1), seed=1) == requests(None, None)
    with pytest.raises(ConfigError, match="workload of type trace"):
        with_arrivals(requests(0.0, None), LoadSpec(arrival="trace"), seed=1)
