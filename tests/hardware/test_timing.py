"""Peak rates on a clock that only kernels move: every number is worked out by hand."""

from collections.abc import Callable, Iterator
from itertools import repeat

import pytest

from moecap.hardware.timing import ROUNDS, Kernel, PeakRate, affordable_sizes, fastest_s, lasting, peak_rates


class FakeClock:
    """Seconds that pass only inside kernels."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def taking(self, durations_s: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.now_s += next(durations_s)

        return call


def test_the_shortest_call_within_the_budget_counts() -> None:
    clock = FakeClock()
    call = clock.taking(iter([4.0, 2.0, 3.0, 1.0]))
    assert fastest_s(call, 7.5, clock) == 2.0  # 4 + 2 + 3 use the budget up: the 1 s call is never made
    assert clock.now_s == 9.0


def test_one_call_is_made_even_without_a_budget() -> None:
    clock = FakeClock()
    assert fastest_s(clock.taking(iter([5.0])), 0.0, clock) == 5.0


def test_a_peak_is_the_best_of_all_kernels_and_rounds() -> None:
    clock = FakeClock()
    # The first duration of each is its warm-up, then one call a round, since the budget is 0.
    slow = Kernel(name="slow", work=100.0, call=clock.taking(repeat(10.0)))
    fast = Kernel(name="fast", work=100.0, call=clock.taking(iter([0.001, 5.0, 4.0, 2.0, 2.5, 20.0])))
    peak = peak_rates({"memory": [slow, fast]}, 0.0, clock)["memory"]
    # rounds: 20, 25, 50, 40, 10 (the slow one's, in the round in which the fast one was disturbed)
    assert (peak.work_per_s, peak.kernel) == (50.0, "fast")
    assert peak.spread == pytest.approx((50 - 10) / 25)


def test_rounds_go_over_all_quantities_in_turn() -> None:
    clock, order = FakeClock(), []

    def kernel(name: str) -> Kernel:
        advance = clock.taking(repeat(1.0))
        return Kernel(name=name, work=1.0, call=lambda: (order.append(name), advance()))

    peaks = peak_rates({"a": [kernel("a")], "b": [kernel("b")]}, 0.0, clock)
    assert order == ["a", "b"] * (1 + ROUNDS)
    assert {quantity: peak.spread for quantity, peak in peaks.items()} == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize(("limit_s", "sizes"), [(0.5, [256]), (0.9, [256, 512]), (100.0, [256, 512, 1024])])
def test_sizes_stop_where_a_call_would_take_too_long(limit_s: float, sizes: list[int]) -> None:
    clock = FakeClock()

    def kernel_of(size: int) -> Kernel:
        return Kernel(name=str(size), work=size**3, call=clock.taking(repeat((size / 512) ** 3 * 0.8)))

    # 512 takes 0.8 s, 1024 6.4 s, 4096 409.6 s; the first is always kept
    assert affordable_sizes(kernel_of, (256, 512, 1024, 4096), limit_s, clock) == sizes


def test_a_kernel_is_repeated_until_a_call_lasts() -> None:
    """3 ms at a time: 4 times are the first to reach 10 ms."""
    clock = FakeClock()
    kernel = lasting(Kernel(name="k", work=5.0, call=clock.taking(repeat(0.003))), 0.01, clock)
    begin_s = clock.now_s
    kernel.call()
    assert clock.now_s - begin_s == pytest.approx(0.012)
    assert (kernel.name, kernel.work) == ("k", 20.0)


def test_a_kernel_that_lasts_by_itself_is_called_once() -> None:
    clock = FakeClock()
    assert lasting(Kernel(name="k", work=5.0, call=clock.taking(repeat(0.5))), 0.01, clock).work == 5.0


def test_a_rate_read_as_a_cost_is_its_inverse() -> None:
    peak = PeakRate(work_per_s=250_000.0, kernel="k", spread=0.1)
    assert peak.as_cost("kernel_launch_s").value == pytest.approx(4e-6)
    rate = peak.as_rate("host_read_bytes_per_s", threads=4)
    assert (rate.value, rate.spread, rate.at) == (250_000.0, 0.1, {"threads": 4})
