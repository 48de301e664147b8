"""Peak rates by repetition: which of several kernels is the fastest, how fast, and how well that repeats.

It knows nothing of what a kernel does, only how much work a call is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median

ROUNDS = 5

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
    return {quantity: _peak([one[quantity] for one in rounds]) for quantity in kernels}


def _best(kernels: Sequence[Kernel], budget_s: float, timer: Timer) -> tuple[float, str]:
    share_s = budget_s / len(kernels)
    return max((kernel.work / fastest_s(kernel.call, share_s, timer), kernel.name) for kernel in kernels)


def _peak(rounds: Sequence[tuple[float, str]]) -> PeakRate:
    rates = [rate for rate, _ in rounds]
    peak, name = max(rounds)
    return PeakRate(work_per_s=peak, kernel=name, spread=(peak - min(rates)) / median(rates))
