"""The largest load that meets an SLO, in few measurements: what to try next, and what a trial said. Pure.

Loads grow by a factor of 2, or of 4 where every limit was held with half of it to spare, until one fails; then the gap
between the largest that passed and the smallest above it that failed is halved on a logarithmic scale, until it is as
narrow as the resolution (whole numbers: until nothing lies between). A larger load that passes beats a smaller one that
failed: measurements are noisy, and what was served within the limits was served. A load that was tried again counts as
it did the last time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from moecap.records import LoadSpec, RequestRecord, SearchSpec, SearchTrial, SloSpec, Window

GROWTH, FAST_GROWTH, TO_SPARE = 2.0, 4.0, 0.5
SMALLEST_SHARE = 1 / 64
"""Of the first rate, below which no smaller one is tried; of requests in flight the smallest number is 1."""
BACKLOG_SHARE = 0.1
"""Of a trial's arrivals, that may be left over at its end: with more, and more than chance leaves, requests come faster
than they are served, however fast those are served that are."""


def next_load(trials: Sequence[SearchTrial], search: SearchSpec, *, whole: bool, largest: float) -> float | None:
    """What to try next, at most `largest`; None: the search is over. `whole`: only whole numbers."""
    if not trials:
        return _proper(min(search.start, largest), whole=whole)
    verdicts = _verdicts(trials)
    best = found_load(trials)
    if best is None:
        return _smaller(min(verdicts), search, whole=whole)
    worst = min((load for load, met in verdicts.items() if not met and load > best), default=None)
    if worst is None:
        margin = next(one.margin for one in reversed(trials) if one.load == best)
        grown = best * (FAST_GROWTH if margin >= TO_SPARE else GROWTH)
        return None if best >= largest else _proper(min(grown, largest), whole=whole)
    if worst / best - 1 <= search.resolution or (whole and worst - best <= 1):
        return None
    middle = sqrt(best * worst)
    return min(worst - 1, max(best + 1, round(middle))) if whole else middle


def found_load(trials: Sequence[SearchTrial]) -> float | None:
    """The largest load that passed; None: none did."""
    return max((load for load, met in _verdicts(trials).items() if met), default=None)


def smallest_load(trials: Sequence[SearchTrial]) -> float:
    """The smallest one that was tried."""
    return min(one.load for one in trials)


def judge(
    load: LoadSpec, size: float, requests: Sequence[RequestRecord], window: Window | None, slo: SloSpec
) -> SearchTrial:
    """What a trial at `size` says. It passes when at least `slo.share` of the requests that were sent in its window
    succeeded within every limit and, in an open loop, as many ended there as came, but for BACKLOG_SHARE or for two
    standard deviations of a Poisson count. Without a window it failed."""
    inside = [] if window is None else [one for one in requests if window.start_ns <= one.sent_ns <= window.end_ns]
    good = [_held(one, slo) for one in inside]
    share = sum(good) / len(good) if good else 0.0
    behind = window is not None and load.is_open and _fell_behind(requests, window)
    kept = [one for one in inside if one.status == "ok" and one.first_token_ns is not None]
    measured = {
        "ttft_s": [_ttft_s(one) for one in kept], "e2e_s": [_e2e_s(one) for one in kept],
        "tpot_s": [tpot for one in kept if (tpot := _tpot_s(one)) is not None],
    }  # fmt: skip
    at_share = {name: _quantile(values, slo.share) for name, values in measured.items()}
    limits = {name: limit for name in measured if (limit := getattr(slo, name)) is not None}
    spare = [1 - value / limits[name] for name in limits if (value := at_share[name]) is not None]
    met = share >= slo.share and not behind
    reason = "" if met else "no steady window" if window is None else "requests come faster than they are served"
    if not met and not behind and window is not None:
        reason = f"{share:.1%} of the requests are within the limits"
    return SearchTrial(
        load=size, met=met, margin=min(spare, default=-1.0), requests=len(inside), slo_share=share, reason=reason,
        **at_share,
    )  # fmt: skip


def _verdicts(trials: Sequence[SearchTrial]) -> dict[float, bool]:
    return {one.load: one.met for one in trials}  # a later one replaces an earlier one


def _smaller(load: float, search: SearchSpec, *, whole: bool) -> float | None:
    """Below a load at which nothing passed."""
    smallest = 1.0 if whole else search.start * SMALLEST_SHARE
    return None if load <= smallest else _proper(max(smallest, load / GROWTH), whole=whole)


def _proper(load: float, *, whole: bool) -> float:
    return max(1, int(load)) if whole else load


def _held(one: RequestRecord, slo: SloSpec) -> bool:
    if one.status != "ok" or one.first_token_ns is None:
        return False
    seen = ((_ttft_s(one), slo.ttft_s), (_e2e_s(one), slo.e2e_s), (_tpot_s(one), slo.tpot_s))
    return all(value is None or limit is None or value <= limit for value, limit in seen)


def _ttft_s(one: RequestRecord) -> float:
    return ((one.first_token_ns or 0) - one.sent_ns) / 1e9


def _e2e_s(one: RequestRecord) -> float:
    return ((one.end_ns or 0) - one.sent_ns) / 1e9


def _tpot_s(one: RequestRecord) -> float | None:
    """None for a single token."""
    if one.output_tokens <= 1:
        return None
    return ((one.end_ns or 0) - (one.first_token_ns or 0)) / 1e9 / (one.output_tokens - 1)


def _fell_behind(requests: Sequence[RequestRecord], window: Window) -> bool:
    came = [one.sent_ns if one.scheduled_ns is None else one.scheduled_ns for one in requests]
    arrived = sum(window.start_ns < time_ns <= window.end_ns for time_ns in came)
    ended = sum(one.end_ns is not None and window.start_ns < one.end_ns <= window.end_ns for one in requests)
    return arrived - ended > max(BACKLOG_SHARE * arrived, 2 * sqrt(arrived))


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None
