"""Metrics of the performance axis: utilisation, latency, throughput, concurrency, memory, experts.

Definitions: docs/metrics.md. Every ratio is one of sums over the passes, or requests, of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from moecap.metrics.columns import NS, PHASES, Bools, Floats
from moecap.metrics.declare import Observed, metric, pooled, ratio
from moecap.metrics.view import RunView
from moecap.metrics.work import kv_held_bytes
from moecap.records import Peaks

PASSES = ("passes", "routing")
NO_PASSES = "no valid pass of the phase ended inside the window"
NO_REQUESTS = "no request was sent inside the window and followed to its end"
CLIENT = {"observer": "engine boundary, in process"}
OVERHEAD_SHARE = 0.5
"""A phase is called overhead-bound when neither bytes nor FLOPs account for more than 1 - this of its time."""


def _against_bandwidth(run: RunView, bytes_read: Floats, scope: str | None) -> Iterator[Observed]:
    """sum(bytes) / sum(t_p) / B_peak per phase and peak source."""
    for peaks in run.peaks:
        for phase in PHASES:
            key: dict[str, Any] = {"phase": phase, "scope": scope, "peak_source": peaks.source}
            where = run.passes.where(phase)
            if peaks.memory_bytes_per_s is None:
                yield Observed(missing=f"peak memory bandwidth is unknown ({peaks.method})", **key)
                continue
            possible = run.passes.duration_s[where].sum() * peaks.memory_bytes_per_s
            yield ratio(bytes_read[where].sum(), possible, n=int(where.sum()), why_zero=NO_PASSES, **key)


@metric("s_mbu", unit="share", direction="higher", needs=PASSES)
def s_mbu(run: RunView) -> Iterator[Observed]:
    """Bytes of activated weights and KV per second of pass time, over peak bandwidth (arXiv 2412.07067)."""
    work = run.work
    yield from _against_bandwidth(run, work.weight_bytes + work.kv_bytes, "paper")


@metric("s_mbu_physical", unit="share", direction="higher", needs=PASSES)
def s_mbu_physical(run: RunView) -> Iterator[Observed]:
    """The same with everything that kernels read and write."""
    yield from _against_bandwidth(run, run.work.physical_bytes, "physical")


@metric("mbu", unit="share", direction="neither", needs=PASSES)
def mbu(run: RunView) -> Iterator[Observed]:
    """The same with every expert counted, as for a dense model: an overestimate."""
    work = run.work
    yield from _against_bandwidth(run, work.weight_bytes_all_experts + work.kv_bytes, "paper")


@metric("mbu_min_bk", unit="share", direction="neither", needs=PASSES)
def mbu_min_bk(run: RunView) -> Iterator[Observed]:
    """The same with min(tokens x top-k, E) experts per layer: an upper bound without routing records."""
    work = run.work
    yield from _against_bandwidth(run, work.weight_bytes_min_bk + work.kv_bytes, "paper")


@metric("s_mbu_tier", unit="share", direction="higher", needs=("passes", "tiers"))
def s_mbu_tier(run: RunView) -> Iterator[Observed]:
    """What passes read from a memory tier per second of pass time, over that tier's peak."""
    for tier, bytes_read in _tier_bytes(run).items():
        for peaks in run.peaks:
            key: dict[str, Any] = {"peak_source": peaks.source, "qualifiers": {"tier": tier}}
            peak = peaks.tier_bytes_per_s.get(tier)
            if peak is None:
                yield Observed(missing=f"peak bandwidth of {tier} is unknown ({peaks.method})", **key)
                continue
            possible = run.passes.duration_s.sum() * peak
            yield ratio(bytes_read, possible, n=len(run.passes), why_zero=NO_PASSES, **key)


@metric("s_mfu", unit="share", direction="higher", needs=PASSES)
def s_mfu(run: RunView) -> Iterator[Observed]:
    """sum over dtypes (FLOPs / dense peak of the dtype) / sum(t_p), per phase and peak source."""
    for peaks in run.peaks:
        for phase in PHASES:
            where = run.passes.where(phase)
            unknown = sorted(run.work.flops.keys() - peaks.flops_per_s.keys())
            if unknown:
                why = f"no dense {', '.join(unknown)} peak ({peaks.method})"
                yield Observed(missing=why, phase=phase, peak_source=peaks.source)
                continue
            yield ratio(
                _compute_s(run, peaks)[where].sum(), run.passes.duration_s[where].sum(), n=int(where.sum()),
                why_zero=NO_PASSES, phase=phase, peak_source=peaks.source,
            )  # fmt: skip


@metric("overhead_share", unit="share", direction="lower", needs=PASSES)
def overhead_share(run: RunView) -> Iterator[Observed]:
    """Share of pass time that a perfect overlap of memory and compute at their peaks leaves unexplained:
    1 - sum(max(physical bytes / B_peak, FLOPs / F_peak)) / sum(t_p). For offloaded systems reads of tiers count."""
    for peaks in run.peaks:
        unknown = run.work.flops.keys() - peaks.flops_per_s.keys()
        for phase in PHASES:
            key: dict[str, Any] = {"phase": phase, "peak_source": peaks.source}
            if peaks.memory_bytes_per_s is None or unknown:
                yield Observed(missing=f"peaks are unknown ({peaks.method})", **key)
                continue
            where = run.passes.where(phase)
            memory_s = run.work.physical_bytes / peaks.memory_bytes_per_s
            explained = np.maximum(np.maximum(memory_s, _compute_s(run, peaks)), _tier_s(run, peaks))
            total = run.passes.duration_s[where].sum()
            yield ratio(total - explained[where].sum(), total, n=int(where.sum()), why_zero=NO_PASSES, **key)


def _compute_s(run: RunView, peaks: Peaks) -> Floats:
    """Per pass: the time that its FLOPs take at the peak of their dtypes."""
    per_dtype = [flops / peaks.flops_per_s[dtype] for dtype, flops in run.work.flops.items()]
    total: Floats = np.sum(per_dtype, axis=0)
    return total


def _tier_s(run: RunView, peaks: Peaks) -> Floats:
    """Per pass: the time that reads of its tiers take at their peaks, where known."""
    total = np.zeros(len(run.passes))
    for name, peak in peaks.tier_bytes_per_s.items():
        rows, bytes_read = run.tier_reads(name)
        np.add.at(total, rows, bytes_read / peak)
    return total


def _tier_bytes(run: RunView) -> dict[str, float]:
    return {name: float(run.tier_reads(name)[1].sum()) for name in run.tier_names}


@metric("tier_bytes_per_output_token", unit="bytes", direction="lower", needs=("passes", "tiers", "requests"))
def tier_bytes_per_output_token(run: RunView) -> Iterator[Observed]:
    """What passes read from a memory tier, per output token of the window."""
    for tier, bytes_read in _tier_bytes(run).items():
        yield ratio(
            bytes_read, output_tokens(run), n=len(run.passes), why_zero="no output token in the window",
            qualifiers={"tier": tier},
        )  # fmt: skip


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
    counted = requests.ok & run.inside(requests.sent_ns) & (requests.first_token_ns >= 0)
    sent, first, end = (times[counted] for times in (requests.sent_ns, requests.first_token_ns, requests.end_ns))
    return (first - sent) * NS, (end - sent) * NS, (end - first) * NS, requests.output_tokens[counted] * 1.0


@metric("ttft_s", unit="s", direction="lower", needs=("requests",))
def ttft_s(run: RunView) -> Iterator[Observed]:
    """First token - sent."""
    yield pooled(_followed(run)[0], why_empty=NO_REQUESTS, qualifiers=CLIENT, per_request=True)


@metric("e2e_s", unit="s", direction="lower", needs=("requests",))
def e2e_s(run: RunView) -> Iterator[Observed]:
    """Last token - sent."""
    yield pooled(_followed(run)[1], why_empty=NO_REQUESTS, qualifiers=CLIENT, per_request=True)


@metric("tpot_s", unit="s", direction="lower", needs=("requests",))
def tpot_s(run: RunView) -> Iterator[Observed]:
    """(last - first token) / (n - 1), of requests with more than one output token."""
    _, _, generating, tokens = _followed(run)
    several = tokens > 1
    samples = generating[several] / (tokens[several] - 1)
    why = "no request sent inside the window made two tokens"
    yield pooled(samples, why_empty=why, qualifiers=CLIENT, per_request=True)


@metric("itl_s", unit="s", direction="lower", needs=("requests",))
def itl_s(run: RunView) -> Iterator[Observed]:
    """Gaps between tokens; a chunk of m tokens counts as m gaps of 1/m of it."""
    requests = run.requests
    counted = requests.ok & run.inside(requests.sent_ns)
    same = (np.diff(requests.chunk_row) == 0) & counted[requests.chunk_row[1:]]
    tokens = requests.chunk_tokens[1:][same]
    gaps = np.repeat(np.diff(requests.chunk_ns)[same] * NS / np.maximum(tokens, 1), tokens)
    yield pooled(gaps, why_empty="no request sent inside the window made two tokens", qualifiers=CLIENT)


# ------------------------------------------------------------------------------------------- throughput of the window


def output_tokens(run: RunView) -> float:
    """Tokens that were produced inside the window, by their own time."""
    return float(run.requests.chunk_tokens[run.inside(run.requests.chunk_ns)].sum())


@metric("output_tokens_per_s", unit="tokens/s", direction="higher", needs=("requests",))
def output_tokens_per_s(run: RunView) -> Iterator[Observed]:
    """Output tokens of the window, by their own time, over its length."""
    yield ratio(output_tokens(run), run.window_s, n=len(run.requests), why_zero="the window is empty")


@metric("total_tokens_per_s", unit="tokens/s", direction="higher", needs=("requests",))
def total_tokens_per_s(run: RunView) -> Iterator[Observed]:
    """The same with prompt tokens, each prompt at its first token."""
    yield ratio(total_tokens(run), run.window_s, n=len(run.requests), why_zero="the window is empty")


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
    yield ratio(completed(run), run.window_s, n=len(run.requests), why_zero="the window is empty")


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
    sent = run.inside(run.requests.sent_ns)
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
    """Closed loop: requests in flight, and completion rate x mean end-to-end time, each over the concurrency, - 1.

    J. D. C. Little (1961). The second form counts whole requests, so a window of few of them is off by its edges.
    """
    load = run.manifest.spec.point.load
    asked = None if load is None else load.concurrency
    if asked is None:
        yield Observed(missing="the load has no concurrency")
        return
    possible = run.window_s * asked
    in_flight = _request_seconds_in_flight(run)
    done = run.requests.ok & run.inside(run.requests.end_ns)
    seconds = float((run.requests.end_ns - run.requests.sent_ns)[done].sum() * NS)
    for form, value in (("in flight", in_flight), ("rate x time", seconds)):
        yield ratio(
            value - possible, possible, n=int(done.sum()), why_zero="the window is empty", qualifiers={"form": form}
        )


# ------------------------------------------------------------------------------------------------ memory and experts


@metric("weight_bytes", unit="bytes", direction="lower", needs=())
def weight_bytes(run: RunView) -> Iterator[Observed]:
    """Weights held in all tiers, scales included."""
    yield Observed(largest=float(sum(run.held.weight_bytes.values())), n=1)


@metric("resident_weight_bytes", unit="bytes", direction="lower", needs=())
def resident_weight_bytes(run: RunView) -> Iterator[Observed]:
    """Weights in the memory that computes."""
    yield Observed(largest=float(run.held.resident_weight_bytes), n=1)


@metric("kv_peak_bytes", unit="bytes", direction="lower", needs=("passes",))
def kv_peak_bytes(run: RunView) -> Iterator[Observed]:
    """Most KV and state that the requests of one pass held."""
    if len(run.passes) == 0:
        yield Observed(missing=NO_PASSES)
        return
    yield Observed(largest=float(kv_held_bytes(run.shape, run.held, run.passes).max()), n=len(run.passes))


@metric("memory_bytes", unit="bytes", direction="lower", needs=("passes",))
def memory_bytes(run: RunView) -> Iterator[Observed]:
    """Resident weights and peak KV: what the model needs, without the engine's own workspace."""
    for peak in kv_peak_bytes(run):
        if peak.largest is None:
            yield peak
        else:
            yield Observed(largest=run.held.resident_weight_bytes + peak.largest, n=peak.n)


@metric("peak_rss_bytes", unit="bytes", direction="lower", needs=("hosts",))
def peak_rss_bytes(run: RunView) -> Iterator[Observed]:
    """Most resident memory of the engine's processes, libraries and all."""
    seen = run.run.hosts["engine_rss_bytes"].drop_null().to_numpy()
    if len(seen) == 0:
        yield Observed(missing=run.manifest.unknown.get("engine_rss_bytes", "it was not sampled"))
        return
    yield Observed(largest=float(seen.max()), n=len(seen))


@metric("distinct_experts", unit="experts", direction="neither", needs=PASSES)
def distinct_experts(run: RunView) -> Iterator[Observed]:
    """Mean over passes and MoE layers of the distinct experts that fired."""
    for phase in PHASES:
        found = run.routing.distinct[run.passes.where(phase)]
        yield ratio(found.sum(), found.size, n=len(found), why_zero=NO_PASSES, phase=phase)


@metric("expert_load_imbalance", unit="ratio", direction="lower", needs=PASSES)
def expert_load_imbalance(run: RunView) -> Iterator[Observed]:
    """Tokens of a layer's busiest expert over the mean of its experts, over the whole window; mean of the layers."""
    tokens = run.expert_tokens
    if tokens.size == 0:
        yield Observed(missing=NO_PASSES)
        return
    yield ratio(
        float((tokens.max(axis=1) / tokens.mean(axis=1)).sum()), len(tokens), n=len(run.passes), why_zero=NO_PASSES
    )
