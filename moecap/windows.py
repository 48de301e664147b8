"""Which stretch of a run is measured, whether the load was held in it, and whether the client kept up. Pure: from
records of requests alone.

Closed loop: from when `concurrency` requests have produced their first token until the last planned one is issued.
Open loop: from when each of the first arrivals, those that fill the system, has ended until the last arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from moecap.records import ClientRecord, LoadSpec, Phase, RequestRecord, Window

LITTLE_LIMIT = 0.05
"""Largest deviation of what a load was from what it should have been, as a share."""
MIN_ROUNDS = 20
"""Completions per request in flight from which on rate x time is known: with fewer, the requests that the window's
edges cut weigh more than the deviation that is looked for."""
SLOW_CLIENT_SHARE = 0.25
"""Of the median gap between tokens: when the client's event loop is later than that (p99), its times are not the
server's. Up to TIMER_S even an idle one is late."""
TIMER_S = 0.001


def steady_window(requests: Sequence[RequestRecord], load: LoadSpec, filling: int) -> Window | None:
    """The window of a run, None where there is none; the first `filling` arrivals of an open loop fill the system."""
    if load.is_open:
        return open_loop_window(requests, filling)
    return closed_loop_window(requests, load.concurrency or 1)


def closed_loop_window(requests: Sequence[RequestRecord], concurrency: int) -> Window | None:
    """From the moment when `concurrency` requests have produced their first token until the last one is issued.

    None when there is no such stretch.
    """
    first_tokens = sorted(one.first_token_ns for one in requests if one.first_token_ns is not None)
    if len(first_tokens) < concurrency:
        return None
    return _window(first_tokens[concurrency - 1], max(one.sent_ns for one in requests))


def open_loop_window(requests: Sequence[RequestRecord], filling: int) -> Window | None:
    """From the moment when each of the first `filling` arrivals has ended until the last arrival.

    None when there is no such stretch, as in a system that can't keep up, or when nothing was answered.
    """
    arrivals = sorted(requests, key=_arrival_ns)
    first, rest = arrivals[:filling], arrivals[filling:]
    if not rest or all(one.first_token_ns is None for one in rest):
        return None
    opens_ns = max((one.end_ns or one.sent_ns for one in first), default=_arrival_ns(rest[0]))
    return _window(opens_ns, _arrival_ns(rest[-1]))


def load_check(requests: Sequence[RequestRecord], window: Window, load: LoadSpec) -> str | None:
    """What was wrong with the load in the window; empty: nothing; None: too few requests completed to tell.

    Closed loop: the time-mean of requests in flight against the concurrency. Open loop (J. D. C. Little, 1961): that
    mean against completions per second x their mean time in the system, which is computed without it.
    """
    mean = mean_in_flight(requests, window)
    if not load.is_open:
        asked = load.concurrency or 1
        off = mean / asked - 1
        return "" if abs(off) <= LITTLE_LIMIT else f"{mean:.2f} requests were in flight, {asked} were asked"
    times_ns = [
        one.end_ns - one.sent_ns
        for one in requests
        if one.status == "ok" and one.end_ns is not None and window.start_ns < one.end_ns <= window.end_ns
    ]
    if mean == 0 or len(times_ns) < MIN_ROUNDS * mean:
        return None
    by_rate = sum(times_ns) / (window.end_ns - window.start_ns)
    told = f"{mean:.2f} requests were in flight, their rate x time says {by_rate:.2f}"
    return "" if abs(by_rate / mean - 1) <= LITTLE_LIMIT else told


def slow_client(client: ClientRecord | None, requests: Sequence[RequestRecord]) -> str | None:
    """Why the client's own delay spoils what it measured; None: it doesn't, or there is nothing to hold it against."""
    gaps_ns = [later - earlier for one in requests for earlier, later in pairwise(one.chunk_ns)]
    if client is None or client.loop_lag_p99_s is None or not gaps_ns:
        return None
    gap_s = median(gaps_ns) / 1e9
    if client.loop_lag_p99_s <= max(TIMER_S, SLOW_CLIENT_SHARE * gap_s):
        return None
    late = f"the client's event loop was {1e3 * client.loop_lag_p99_s:.1f} ms late (p99)"
    return f"{late}, the median gap between chunks is {1e3 * gap_s:.1f} ms: its times are not the server's"


def mean_in_flight(requests: Sequence[RequestRecord], window: Window) -> float:
    """Requests in flight, averaged over the window's time; one that never ended counts to the window's end."""
    spent_ns = 0
    for one in requests:
        end_ns = window.end_ns if one.end_ns is None else one.end_ns
        spent_ns += max(0, min(end_ns, window.end_ns) - max(one.sent_ns, window.start_ns))
    return spent_ns / (window.end_ns - window.start_ns)


def _arrival_ns(one: RequestRecord) -> int:
    return one.sent_ns if one.scheduled_ns is None else one.scheduled_ns


def _window(start_ns: int, end_ns: int) -> Window | None:
    return Window(start_ns=start_ns, end_ns=end_ns, phase=Phase.STEADY) if end_ns > start_ns else None
