"""Peak rates by repetition: which of several kernels is the fastest, how fast, and how well that repeats.

It knows nothing of what a kernel does, only how much work a call is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from statistics import median

from moecap.records import Measured

ROUNDS = 5
UNSTEADY_SPREAD = 0.5
"""(max - min) / median over the rounds above which a peak is doubtful: other work ran beside it."""

Timer = Callable[[], float]
"""Seconds on a clock that never goes back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """Something to time."""

    name: str
    work: float
    """Bytes or FLOPs of one call."""
    call: Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakRate:
    """The most that any kernel reached."""

    work_per_s: float
    kernel: str
    spread: float
    """(max - min) / median over the rounds' best rates."""

    def as_rate(self, quantity: str, **at: int) -> Measured:
        """Work per second."""
        return Measured(quantity=quantity, value=self.work_per_s, spread=self.spread, at=at)

    def as_cost(self, quantity: str, **at: int) -> Measured:
        """Seconds per unit of work."""
        return Measured(quantity=quantity, value=1 / self.work_per_s, spread=self.spread, at=at)


def fastest_s(call: Callable[[], object], budget_s: float, timer: Timer) -> float:
    """Shortest duration of one call, repeated until `budget_s` is used up, but at least once."""
    least, start = float("inf"), timer()
    while True:
        before = timer()
        call()
        after = timer()
        least = min(least, after - before)
        if after - start >= budget_s:
            return least


def peak_rates(
    kernels: Mapping[str, Sequence[Kernel]], budget_s: float, timer: Timer = time.perf_counter
) -> dict[str, PeakRate]:
    """Quantity -> highest rate of its kernels, all quantities together in about `budget_s`.

    A first call of each warms up. Then ROUNDS rounds go over all quantities, so that a disturbance spoils one round of
    each, not all rounds of one. No kernel is dropped on the way: the one that looks slow beside other work may be the
    one that reaches the peak. A peak is an upper bound, so the fastest call counts: disturbances only slow calls down.
    """
    for kernel in chain.from_iterable(kernels.values()):
        kernel.call()
    share_s = budget_s / (ROUNDS * len(kernels))
    rounds = [{quantity: _best(some, share_s, timer) for quantity, some in kernels.items()} for _ in range(ROUNDS)]
    return {quantity: peak_of([one[quantity] for one in rounds]) for quantity in kernels}


def lasting(kernel: Kernel, call_s: float, timer: Timer) -> Kernel:
    """The same, so often in one call that a call takes about `call_s`: what a call costs by itself then hardly
    counts."""
    kernel.call()
    times = max(1, math.ceil(call_s / fastest_s(kernel.call, 0.0, timer)))

    def call() -> None:
        for _ in range(times):
            kernel.call()

    return Kernel(name=kernel.name, work=times * kernel.work, call=call)


def affordable_sizes(
    kernel_of: Callable[[int], Kernel], sizes: Sequence[int], limit_s: float, timer: Timer = time.perf_counter
) -> list[int]:
    """Ascending sizes whose calls take at most `limit_s`, judged by the size before; always the first.

    Time grows with the cube of the size. A larger product comes closer to the peak, if there is time for it.
    """
    affordable = [sizes[0]]
    for previous, size in pairwise(sizes):
        kernel = kernel_of(previous)
        kernel.call()
        if fastest_s(kernel.call, 0.0, timer) * (size / previous) ** 3 > limit_s:
            break
        affordable.append(size)
    return affordable


def _best(kernels: Sequence[Kernel], budget_s: float, timer: Timer) -> tuple[float, str]:
    share_s = budget_s / len(kernels)
    return max((kernel.work / fastest_s(kernel.call, share_s, timer), kernel.name) for kernel in kernels)


def peak_of(rounds: Sequence[tuple[float, str]]) -> PeakRate:
    """Of every round's best rate and the kernel that reached it."""
    rates = [rate for rate, _ in rounds]
    peak, name = max(rounds)
    return PeakRate(work_per_s=peak, kernel=name, spread=(peak - min(rates)) / median(rates))
