"""Metrics of the performance axis that requests feel: latency, throughput, and whether the load was what was asked.

Definitions: docs/metrics.md. Throughput is tokens over the window; latency counts requests sent inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moecap.metrics.columns import NO_PASSES, NS, Bools, Floats
from moecap.metrics.declare import Observed, metric, pooled, ratio
from moecap.metrics.view import RunView
from moecap.windows import MIN_ROUNDS

NOTHING_MEETS_THE_SLO = "no load that was tried meets the SLO"
NO_REQUESTS = "no request was sent inside the window and followed to its end"


def _mean_duration(phase: str) -> Callable[[RunView], Iterator[Observed]]:
    def observe(run: RunView) -> Iterator[Observed]:
        durations = run.passes.duration_s[run.passes.where(phase)]
        yield pooled(durations, why_empty=NO_PASSES, phase=phase)

    return observe


metric("prefill_pass_s", unit="s", direction="lower", needs=("passes",))(_mean_duration("prefill"))
metric("decode_pass_s", unit="s", direction="lower", needs=("passes",))(_mean_duration("decode"))


# --------------------------------------------------------------------------------------------- latency of requests


def _followed(run: RunView) -> tuple[Floats, Floats, Floats, Floats]:
    """TTFT, end-to-end, first-to-last seconds and output tokens of successful requests sent inside the window."""
    requests = run.requests
    counted = requests.ok & run.sent_inside & (requests.first_token_ns >= 0)
    sent, first, end = (times[counted] for times in (requests.sent_ns, requests.first_token_ns, requests.end_ns))
    return (first - sent) * NS, (end - sent) * NS, (end - first) * NS, requests.output_tokens[counted] * 1.0


@metric("ttft_s", unit="s", direction="lower", needs=("requests",))
def ttft_s(run: RunView) -> Iterator[Observed]:
    """First token - sent."""
    yield pooled(_followed(run)[0], why_empty=NO_REQUESTS, qualifiers=run.observer, per_request=True)


@metric("e2e_s", unit="s", direction="lower", needs=("requests",))
def e2e_s(run: RunView) -> Iterator[Observed]:
    """Last token - sent."""
    yield pooled(_followed(run)[1], why_empty=NO_REQUESTS, qualifiers=run.observer, per_request=True)


@metric("tpot_s", unit="s", direction="lower", needs=("requests",))
def tpot_s(run: RunView) -> Iterator[Observed]:
    """(last - first token) / (n - 1), of requests with more than one output token."""
    _, _, generating, tokens = _followed(run)
    several = tokens > 1
    samples = generating[several] / (tokens[several] - 1)
    why = "no request sent inside the window made two tokens"
    yield pooled(samples, why_empty=why, qualifiers=run.observer, per_request=True)


@metric("itl_s", unit="s", direction="lower", needs=("requests", "chunk_tokens"))
def itl_s(run: RunView) -> Iterator[Observed]:
    """Gaps between tokens; a chunk of m tokens counts as m gaps of 1/m of it."""
    requests = run.requests
    counted = requests.ok & run.sent_inside
    same = (np.diff(requests.chunk_row) == 0) & counted[requests.chunk_row[1:]]
    tokens = requests.chunk_tokens[1:][same]
    gaps = np.repeat(np.diff(requests.chunk_ns)[same] * NS / np.maximum(tokens, 1), tokens)
    yield pooled(gaps, why_empty="no request sent inside the window made two tokens", qualifiers=run.observer)


# ------------------------------------------------------------------------------------------- throughput of the window


def output_tokens(run: RunView) -> float:
    """Tokens that were produced inside the window, by their own time."""
    return float(run.requests.chunk_tokens[run.inside(run.requests.chunk_ns)].sum())


def _requests_inside(run: RunView) -> int:
    """Requests that produced a token inside the window."""
    return len(np.unique(run.requests.chunk_row[run.inside(run.requests.chunk_ns)]))


@metric("output_tokens_per_s", unit="tokens/s", direction="higher", needs=("requests", "chunk_tokens"))
def output_tokens_per_s(run: RunView) -> Iterator[Observed]:
    """Output tokens of the window, by their own time, over its length."""
    yield ratio(output_tokens(run), run.window_s, n=_requests_inside(run), why_zero="the window is empty")


@metric("total_tokens_per_s", unit="tokens/s", direction="higher", needs=("requests", "chunk_tokens"))
def total_tokens_per_s(run: RunView) -> Iterator[Observed]:
    """The same with prompt tokens, each prompt at its first token."""
    yield ratio(total_tokens(run), run.window_s, n=_requests_inside(run), why_zero="the window is empty")


def total_tokens(run: RunView) -> float:
    """Output tokens, and prompts whose first token came inside the window."""
    prompts = run.requests.input_tokens[run.inside(run.requests.first_token_ns)].sum()
    return output_tokens(run) + float(prompts)


def completed(run: RunView) -> int:
    """Requests that succeeded and ended inside the window."""
    return int((run.requests.ok & run.inside(run.requests.end_ns)).sum())


@metric("requests_per_s", unit="requests/s", direction="higher", needs=("requests",))
def requests_per_s(run: RunView) -> Iterator[Observed]:
    """Successful requests of the window, at their completion, over its length."""
    yield ratio(completed(run), run.window_s, n=completed(run), why_zero="the window is empty")


@metric("goodput_requests_per_s", unit="requests/s", direction="higher", needs=("requests",))
def goodput_requests_per_s(run: RunView) -> Iterator[Observed]:
    """Completed requests of the window that meet the SLO, over its length."""
    if run.slo is None:
        yield Observed(missing="the study sets no slo")
        return
    good = meets_slo(run) & run.inside(run.requests.end_ns)
    yield ratio(int(good.sum()), run.window_s, n=len(run.requests), why_zero="the window is empty")


@metric("slo_share", unit="share", direction="higher", needs=("requests",))
def slo_share(run: RunView) -> Iterator[Observed]:
    """Share of the requests sent inside the window that succeeded within every limit of the SLO."""
    if run.slo is None:
        yield Observed(missing="the study sets no slo")
        return
    sent = run.sent_inside
    yield ratio(int((meets_slo(run) & sent).sum()), int(sent.sum()), n=int(sent.sum()), why_zero=NO_REQUESTS)


def meets_slo(run: RunView) -> Bools:
    """Which requests succeeded and hold every limit; TPOT only for more than one token."""
    requests, slo = run.requests, run.slo
    assert slo is not None
    ttft = (requests.first_token_ns - requests.sent_ns) * NS
    e2e = (requests.end_ns - requests.sent_ns) * NS
    tpot = (requests.end_ns - requests.first_token_ns) * NS / np.maximum(requests.output_tokens - 1, 1)
    good = requests.ok & (requests.first_token_ns >= 0)
    for values, limit in ((ttft, slo.ttft_s), (e2e, slo.e2e_s)):
        good &= True if limit is None else values <= limit
    if slo.tpot_s is not None:
        good &= (requests.output_tokens <= 1) | (tpot <= slo.tpot_s)
    return good


# ------------------------------------------------------------------------------------ was the load what was asked


def _request_seconds_in_flight(run: RunView) -> float:
    start_ns, end_ns = run.window_ns
    sent, end = run.requests.sent_ns, run.requests.end_ns
    return float(np.clip(np.minimum(end, end_ns) - np.maximum(sent, start_ns), 0, None).sum() * NS)


@metric("concurrency_in_flight", unit="requests", direction="neither", needs=("requests",))
def concurrency_in_flight(run: RunView) -> Iterator[Observed]:
    """Time-mean of requests in flight."""
    yield ratio(_request_seconds_in_flight(run), run.window_s, n=len(run.requests), why_zero="the window is empty")


@metric("concurrency_in_passes", unit="requests", direction="neither", needs=("passes",))
def concurrency_in_passes(run: RunView) -> Iterator[Observed]:
    """Requests per pass as the engine saw them, weighted by the passes' time."""
    time = run.passes.duration_s
    yield ratio((run.passes.num_requests * time).sum(), time.sum(), n=len(run.passes), why_zero=NO_PASSES)


@metric("little_law_error", unit="share", direction="neither", needs=("requests",))
def little_law_error(run: RunView) -> Iterator[Observed]:
    """Closed loop: requests in flight, and completion rate x mean end-to-end time, each over the concurrency, - 1. Open
    loop: rate x time over the requests in flight, - 1.

    J. D. C. Little (1961). Rate x time counts whole requests: it is missing in a window of few of them.
    """
    load, by_rate = run.load, {"form": "rate x time"}
    if load is None or not (load.is_open or load.concurrency):
        yield Observed(missing="the load has neither a concurrency nor arrivals")
        return
    in_flight = _request_seconds_in_flight(run)
    expected = in_flight if load.is_open else run.window_s * (load.concurrency or 0)
    done = run.requests.ok & run.inside(run.requests.end_ns)
    count = int(done.sum())
    if not load.is_open:
        yield ratio(
            in_flight - expected, expected, n=count, why_zero="the window is empty", qualifiers={"form": "in flight"}
        )
    if count * run.window_s < MIN_ROUNDS * expected:
        of = "mean in flight" if load.is_open else "concurrency"
        yield Observed(
            missing=f"{count} requests completed in the window, fewer than {MIN_ROUNDS} x the {of}", qualifiers=by_rate
        )
        return
    seconds = float((run.requests.end_ns - run.requests.sent_ns)[done].sum() * NS)
    yield ratio(seconds - expected, expected, n=count, why_zero="nothing was in flight", qualifiers=by_rate)


def _found(run: RunView, *, in_open_loop: bool) -> Observed:
    search = run.manifest.search
    if search is None or search.load.is_open != in_open_loop:
        return Observed(missing="the study searches for no such load")
    if search.found is None:
        return Observed(missing=NOTHING_MEETS_THE_SLO)
    return Observed(numerator=search.found, denominator=1.0, n=len(search.trials))


@metric("max_concurrency_under_slo", unit="requests", direction="higher", needs=())
def max_concurrency_under_slo(run: RunView) -> Iterator[Observed]:
    """The most requests in flight with which the SLO was met, as `concurrency: auto` found it."""
    yield _found(run, in_open_loop=False)


@metric("max_rate_per_s_under_slo", unit="requests/s", direction="higher", needs=())
def max_rate_per_s_under_slo(run: RunView) -> Iterator[Observed]:
    """The most requests per second with which the SLO was met, as `rate_per_s: auto` found it."""
    yield _found(run, in_open_loop=True)


@metric("send_delay_s", unit="s", direction="lower", needs=("requests",))
def send_delay_s(run: RunView) -> Iterator[Observed]:
    """Open loop: sent - scheduled, of the requests sent inside the window: a late client, or a cap on its requests."""
    requests = run.requests
    counted = run.sent_inside & (requests.scheduled_ns >= 0)
    delays = (requests.sent_ns - requests.scheduled_ns)[counted] * NS
    why = "no request sent inside the window had a time of its own"
    yield pooled(delays, why_empty=why, qualifiers=run.observer, per_request=True)
