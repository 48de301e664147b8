"""Utilisation, latency, throughput and concurrency of runs that are small enough to do by hand."""

from dataclasses import replace
from typing import Any

import pytest
from hand_made import HELD, PEAKS, a_run, host, one_pass, performance_point, request, routed, view

from moecap.metrics.combine import observe_run
from moecap.metrics.declare import METRICS, Observed
from moecap.metrics.reduce import AXES
from moecap.metrics.view import RunView
from moecap.records import LoadSpec, Peaks, Phase, SloSpec, TierRecord

assert AXES  # their import declares the metrics


def seen(name: str, run: RunView, **key: Any) -> Observed:
    found = [
        one
        for one in METRICS[name].observe(run)
        if all(getattr(one, field) == value for field, value in {"phase": None, **key}.items())
    ]
    assert len(found) == 1, found
    return found[0]


def value(name: str, run: RunView, **key: Any) -> float:
    one = seen(name, run, **key)
    assert one.numerator is not None and one.denominator is not None, one
    return one.numerator / one.denominator


# Pass 0 ends before the window, 1 prefills, 2 and 3 decode, 4 is invalid, 5 ends after the window.
PASSES = (
    one_pass(0, Phase.PREFILL, 0, 1, (9,), (9,)),
    one_pass(1, Phase.PREFILL, 2, 2, (3, 2), (3, 2)),
    one_pass(2, Phase.DECODE, 4, 1, (1, 1), (4, 3)),
    one_pass(3, Phase.DECODE, 5, 1, (1,), (5,)),
    one_pass(4, Phase.DECODE, 6, 1, (1,), (6,), valid=False),
    one_pass(5, Phase.DECODE, 9, 2, (1,), (7,)),
)
ROUTING = (
    routed(0, (9, 9, 0, 0)), routed(1, (5, 3, 2, 0)), routed(2, (2, 1, 0, 1)), routed(3, (1, 1, 0, 0)),
    routed(4, (0, 0, 0, 9)), routed(5, (1, 1, 0, 0)),
)  # fmt: skip
STEADY = (1.5, 10.0)


def steady(**changes: Any) -> RunView:
    return view(a_run(window_s=STEADY, passes=PASSES, routing=ROUTING, **changes))


def test_s_mbu_is_a_ratio_of_sums_over_valid_passes_that_end_in_the_window() -> None:
    """A = (100 + 50 d) x 4: 1000, 1000, 800; K = attended x 4 elements x 2: 40, 56, 40; t = 2 + 1 + 1; B = 1e6."""
    run = steady()
    assert value("s_mbu", run) == pytest.approx((1000 + 40 + 1000 + 56 + 800 + 40) / 4 / 1e6)
    assert value("s_mbu", run, phase="prefill") == pytest.approx(1040 / 2 / 1e6)
    assert value("s_mbu", run, phase="decode") == pytest.approx((1056 + 840) / 2 / 1e6)
    assert value("mbu", run) == pytest.approx((3 * 1200 + 136) / 4 / 1e6)
    assert seen("s_mbu", run).n == 3


def test_s_mfu_against_the_peak_of_the_dtype() -> None:
    """Linear 5, 2 and 1 tokens x 400, pairs (6 + 3), 7 and 5 x 8, logits rows 2, 2 and 1 x 200."""
    flops = 8 * 400 + (9 + 7 + 5) * 8 + 5 * 200
    assert value("s_mfu", steady()) == pytest.approx(flops / 4 / 1e6)
    no_peak = Peaks(source="catalogue", memory_bytes_per_s=2e6, flops_per_s={"bfloat16": 1e9}, method="row x")
    run = steady(peaks=(PEAKS, no_peak))
    assert seen("s_mfu", run, peak_source="catalogue").missing == "no dense float32 peak (row x)"
    assert value("s_mbu", run, peak_source="catalogue") * 2 == value("s_mbu", run, peak_source="calibrated")


def test_unknown_bandwidth_is_missing_and_leaves_the_rest() -> None:
    peaks = Peaks(source="calibrated", memory_bytes_per_s=None, flops_per_s={"float32": 1e6}, method="failed: busy")
    run = steady(peaks=(peaks,))
    assert seen("s_mbu", run).missing == "peak memory bandwidth is unknown (failed: busy)"
    assert seen("overhead_share", run).missing is not None
    assert value("s_mfu", run) > 0


def test_overhead_is_the_time_that_neither_bytes_nor_flops_explain() -> None:
    """One pass of 1 s: FLOPs 400 + 8 x 5 + 200 = 640; physical bytes are more than the FLOPs; a tier takes 0.5 s."""
    run = a_run(passes=(one_pass(0, Phase.DECODE, 0, 1, (1,), (5,)),), routing=(routed(0, (1, 1, 0, 0)),))
    alone = view(run)
    assert alone.work.physical_bytes[0] > 640
    assert value("overhead_share", alone) == pytest.approx(1 - alone.work.physical_bytes[0] / 1e6)
    tier = TierRecord(pass_id=0, tier="ssd", bytes_read=5000, expert_hits=0, expert_misses=2, stall_ns=1)
    read = view(
        a_run(passes=(one_pass(0, Phase.DECODE, 0, 1, (1,), (5,)),), routing=(routed(0, (1, 1, 0, 0)),), tiers=(tier,))
    )
    assert value("overhead_share", read) == pytest.approx(0.5)
    assert value("s_mbu_tier", read) == pytest.approx(0.5)


def test_tiers_count_the_passes_of_the_window_only() -> None:
    tiers = [
        TierRecord(pass_id=i, tier="ssd", bytes_read=10**i, expert_hits=0, expert_misses=1, stall_ns=1)
        for i in range(6)
    ]
    run = steady(tiers=tuple(tiers))
    assert value("s_mbu_tier", run) == pytest.approx((10 + 100 + 1000) / 4 / 1e4)


def test_experts() -> None:
    """Layer totals over the counted passes: 8, 5, 2, 1 of 16: the busiest has 2 x the mean of 4."""
    run = steady()
    assert value("distinct_experts", run) == pytest.approx((3 + 3 + 2) / 3)
    assert value("distinct_experts", run, phase="decode") == pytest.approx(2.5)
    assert value("expert_load_imbalance", run) == pytest.approx(2.0)


def test_pass_times() -> None:
    assert seen("prefill_pass_s", steady(), phase="prefill").samples == pytest.approx([2.0])
    assert seen("decode_pass_s", steady(), phase="decode").samples == pytest.approx([1.0, 1.0])
    assert value("concurrency_in_passes", steady()) == pytest.approx((2 * 2 + 2 * 1 + 1 * 1) / 4)


# A: inside; B: sent before the window; C: inside, ends after it; D: fails; E: one token.
REQUESTS = (
    request(0, 2.0, (2.5, 3.0, 4.0)),
    request(1, 1.0, (1.4, 2.0)),
    request(2, 8.0, (8.2, 9.0, 11.0), chunk_tokens=(1, 2, 1)),
    request(3, 5.0, (), status="failed", end_ns=6 * 10**9),
    request(4, 6.0, (6.1,)),
)


def served(**changes: Any) -> RunView:
    slo = changes.pop("slo", None)
    return view(a_run(window_s=STEADY, requests=REQUESTS, **changes), slo=slo)


def test_latency_counts_successful_requests_sent_inside_followed_to_their_end() -> None:
    run = served()
    assert seen("ttft_s", run).samples == pytest.approx([0.5, 0.2, 0.1])
    assert seen("e2e_s", run).samples == pytest.approx([2.0, 3.0, 0.1])
    assert seen("tpot_s", run).samples == pytest.approx([1.5 / 2, 2.8 / 3])  # one token has no time per token
    assert seen("itl_s", run).samples == pytest.approx([0.5, 1.0, 0.4, 0.4, 2.0])  # a chunk of two: two halves


def test_throughput_counts_tokens_by_their_own_time() -> None:
    """Inside [1.5, 10]: A 3, B 1, C 1 + 2, E 1 tokens; prompts whose first token is inside: A, C, E; ends: A, B, E."""
    run = served()
    assert value("output_tokens_per_s", run) == pytest.approx(8 / 8.5)
    assert value("total_tokens_per_s", run) == pytest.approx((8 + 30) / 8.5)
    assert value("requests_per_s", run) == pytest.approx(3 / 8.5)


def test_what_comes_out_as_the_window_opens_was_made_before_it() -> None:
    """A closed loop of one: the window opens at a first token at 2.0, which a pass from 1.0 to 2.0 made, and closes as
    the last request is sent at 5.0."""
    passes = (
        one_pass(0, Phase.PREFILL, 1, 1, (10,), (10,)), one_pass(1, Phase.DECODE, 2, 1, (1,), (11,)),
        one_pass(2, Phase.PREFILL, 3, 1, (10,), (10,)), one_pass(3, Phase.DECODE, 4, 1, (1,), (11,)),
    )  # fmt: skip
    requests = (request(0, 1.0, (2.0, 3.0)), request(1, 3.0, (4.0, 5.0)), request(2, 5.0, (6.0, 7.0)))
    routing = tuple(routed(i, (1, 1, 0, 0)) for i in range(4))
    run = view(a_run(window_s=(2.0, 5.0), passes=passes, routing=routing, requests=requests))
    assert run.passes.pass_id.tolist() == [1, 2, 3]
    assert run.passes.duration_s.sum() == pytest.approx(run.window_s)
    assert value("output_tokens_per_s", run) == pytest.approx(3 / 3)
    assert value("total_tokens_per_s", run) == pytest.approx((3 + 10) / 3)
    assert seen("ttft_s", run).samples == pytest.approx([1.0, 1.0])  # the request that closes it is followed


def test_peaks_that_nobody_knows_are_missing_by_name() -> None:
    run = steady(peaks=())
    for name in ("s_mbu", "s_mfu", "overhead_share"):
        assert "no calibrated peaks of this hardware" in (seen(name, run).missing or ""), name


def test_littles_law() -> None:
    """Request-seconds inside: A 2, B 0.5, C 2, D 1, E 0.1, of two asked for 8.5 s; too few end for the second form."""
    run = served()
    assert value("concurrency_in_flight", run) == pytest.approx(5.6 / 8.5)
    in_flight, by_rate = METRICS["little_law_error"].observe(run)
    assert in_flight.numerator is not None and in_flight.denominator is not None
    assert in_flight.numerator / in_flight.denominator == pytest.approx(5.6 / (8.5 * 2) - 1)
    assert by_rate.missing == "3 requests completed in the window, fewer than 20 x the concurrency"


def test_littles_law_by_rate_and_time() -> None:
    """Two slots refilled at once: each request takes 1 s, one ends every half second. Of (2, 24.25] 44 ends, each of
    1 s, where 2 x 22.25 were possible: - 0.5 / 44.5."""
    requests = tuple(request(i, i / 2, (i / 2 + 0.4, i / 2 + 1.0)) for i in range(60))
    in_flight, by_rate = METRICS["little_law_error"].observe(view(a_run(window_s=(2.0, 24.25), requests=requests)))
    for one, expected in ((in_flight, 0.0), (by_rate, -0.5 / 44.5)):
        assert one.numerator is not None and one.denominator is not None
        assert one.numerator / one.denominator == pytest.approx(expected, abs=1e-9)


def test_littles_law_of_an_open_loop_holds_rate_and_time_against_what_was_in_flight() -> None:
    """One request of 1 s after the other, and one in four fails: 1 in flight in (2, 42], 30 succeed in 40 s."""
    point = replace(performance_point(), load=LoadSpec(arrival="poisson", rate_per_s=1.0))
    requests = tuple(
        request(i, i, (i + 0.4, i + 1.0), status="ok" if i % 4 else "failed", end_ns=(i + 1) * 10**9) for i in range(60)
    )
    (by_rate,) = METRICS["little_law_error"].observe(view(a_run(point=point, window_s=(2, 42), requests=requests)))
    assert by_rate.numerator is not None and by_rate.denominator is not None
    assert by_rate.numerator / by_rate.denominator == pytest.approx(30 / 40 - 1)
    (few,) = METRICS["little_law_error"].observe(view(a_run(point=point, window_s=(2, 22), requests=requests)))
    assert few.missing == "15 requests completed in the window, fewer than 20 x the mean in flight"


def test_requests_that_left_late_say_how_late() -> None:
    """Of those sent inside [1.5, 10]; the second was sent before it."""
    late = (1.9, 0.9, 7.0)
    requests = tuple(
        replace(one, scheduled_ns=round(at * 1e9)) for one, at in zip(REQUESTS[:3], late, strict=True)
    )  # fmt: skip
    run = view(a_run(window_s=STEADY, requests=requests))
    assert seen("send_delay_s", run).samples == pytest.approx([0.1, 1.0])
    assert seen("send_delay_s", served()).missing == "no request sent inside the window had a time of its own"


def test_chunks_that_hold_nobody_knows_how_many_tokens_leave_what_counts_them_unknown() -> None:
    """The server told totals: latencies stand, the tokens of the window don't."""
    silent = replace(REQUESTS[0], chunk_tokens=(None, None, None))
    told = {one.declaration.name: one.observed for one in observe_run(view(a_run(requests=(silent,))))}
    assert told["ttft_s"].samples == pytest.approx([0.5])
    assert told["tpot_s"].samples == pytest.approx([0.75])
    for name in ("itl_s", "output_tokens_per_s", "usd_per_million_output_tokens", "energy_j_per_output_token"):
        assert told[name].missing == "the server doesn't say what its chunks hold", name


def test_slo_and_goodput() -> None:
    """A: ttft 0.5, tpot 0.75; C: 0.2, 0.93; D failed; E: 0.1 with one token, which no tpot limit concerns."""
    run = served(slo=SloSpec(ttft_s=0.3, tpot_s=0.8))
    assert value("slo_share", run) == pytest.approx(1 / 4)
    assert value("goodput_requests_per_s", run) == pytest.approx(1 / 8.5)
    assert seen("slo_share", served()).missing == "the study sets no slo"
    assert value("slo_share", served(slo=SloSpec(e2e_s=2.0))) == pytest.approx(2 / 4)


def test_memory() -> None:
    """KV at the end of pass 2: 7 tokens x 4 elements x 2 bytes."""
    run = steady(hosts=(host(2, engine_rss_bytes=70), host(3, engine_rss_bytes=90)))
    assert seen("weight_bytes", run).largest == 1200
    assert seen("kv_peak_bytes", run).largest == 56
    assert seen("memory_bytes", run).largest == 500 + 56
    assert seen("peak_rss_bytes", run).largest == 90
    unread = steady(hosts=(host(2),), unknown={"engine_rss_bytes": "no such process"})
    assert seen("peak_rss_bytes", unread).missing == "no such process"


def test_a_window_without_passes_or_requests_has_no_value() -> None:
    empty = view(a_run(window_s=(20.0, 30.0), passes=PASSES, routing=ROUTING, requests=REQUESTS))
    for name in ("s_mbu", "s_mfu", "distinct_experts", "expert_load_imbalance", "kv_peak_bytes", "ttft_s"):
        assert seen(name, empty).missing, name
    assert value("output_tokens_per_s", empty) == 0  # nothing was produced: that is known


def test_width_of_held_weights_is_what_counts() -> None:
    halved = replace(HELD, bytes_per_param={**HELD.bytes_per_param, "routed_expert": 1.0})
    run = steady(held=halved)
    assert value("s_mbu", run, phase="prefill") == pytest.approx((100 * 4 + 3 * 50 + 40) / 2 / 1e6)
