"""The search for the largest load: by hand, and against oracles that hypothesis makes up."""

from collections.abc import Callable
from math import ceil, log, log2
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.records import LoadSpec, Phase, RequestRecord, SearchSpec, SearchTrial, SloSpec, Window
from moecap.workload.search import found_load, judge, next_load

SLO = SloSpec(tpot_s=0.05, share=0.9)
SECOND = 10**9


def trial(load: float, met: bool, margin: float = 0.1) -> SearchTrial:
    return SearchTrial(
        load=load, met=met, margin=margin if met else -margin, requests=10, slo_share=1.0 if met else 0.0, ttft_s=None,
        tpot_s=None, e2e_s=None,
    )  # fmt: skip


def searched(
    says: Callable[[float], SearchTrial], *, whole: bool = True, largest: float = 1024, **spec: Any
) -> list[SearchTrial]:
    search, trials = SearchSpec(slo=SLO, **spec), list[SearchTrial]()
    while (load := next_load(trials, search, whole=whole, largest=largest)) is not None:
        assert len(trials) < 100, trials
        trials.append(says(load))
    return trials


def test_loads_grow_then_the_gap_is_halved() -> None:
    """By hand, for a largest load of 21: sqrt(16 x 32) = 22.6, sqrt(16 x 23) = 19.2, sqrt(19 x 23) = 20.9; 23 is less
    than 10 % above 21."""
    trials = searched(lambda load: trial(load, load <= 21))
    assert [one.load for one in trials] == [1, 2, 4, 8, 16, 32, 23, 19, 21]
    assert found_load(trials) == 21


def test_with_much_to_spare_loads_grow_faster() -> None:
    trials = searched(lambda load: trial(load, load <= 64, margin=1 - load / 128))
    # half of the limit is left up to 64
    assert [one.load for one in trials] == [1, 4, 16, 64, 256, 128, 91, 76, 70]
    assert found_load(trials) == 64


def test_what_the_engine_can_do_ends_it() -> None:
    trials = searched(lambda load: trial(load, True), largest=24)
    assert [one.load for one in trials] == [1, 2, 4, 8, 16, 24]
    assert found_load(trials) == 24
    assert [one.load for one in searched(lambda load: trial(load, True), start=64, largest=24)] == [24]


def test_when_even_one_fails_nothing_is_found() -> None:
    trials = searched(lambda load: trial(load, False), start=8)
    assert [one.load for one in trials] == [8, 4, 2, 1]
    assert found_load(trials) is None
    rates = [one.load for one in searched(lambda load: trial(load, False), whole=False, start=2.0)]
    assert rates == [2.0, 1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]  # a 64th of the first


def test_a_larger_load_that_passes_beats_a_smaller_one_that_failed() -> None:
    """4 failed by chance, and 8 was tried later, as nothing says that it can't be."""
    search = SearchSpec(slo=SLO)
    noisy = [trial(1, True), trial(2, True), trial(4, False), trial(8, True)]
    assert found_load(noisy) == 8
    assert next_load(noisy, search, whole=True, largest=1024) == 16


def test_a_load_counts_as_it_did_the_last_time() -> None:
    search = SearchSpec(slo=SLO)
    again = [trial(4, True), trial(8, True), trial(16, False), trial(8, False)]
    assert found_load(again) == 4
    assert next_load(again, search, whole=True, largest=1024) == 6  # sqrt(4 x 8)


@given(limit=st.integers(1, 1024), start=st.integers(1, 64), resolution=st.floats(0.01, 1.0))
def test_whole_loads_are_found_in_few_steps(limit: int, start: int, resolution: float) -> None:
    trials = searched(lambda load: trial(load, load <= limit, margin=0.1), start=start, resolution=resolution)
    found = found_load(trials)
    assert found is not None
    assert found <= limit < max(found + 1, found * (1 + resolution)) or (found == limit == 1024)
    assert all(one.load == int(one.load) >= 1 for one in trials)
    assert len({one.load for one in trials}) == len(trials)
    assert len(trials) <= 2 * log2(2 * max(limit, start)) + 2


@given(limit=st.floats(0.05, 900.0), resolution=st.floats(0.02, 1.0), spare=st.booleans())
def test_rates_are_found_in_few_steps(limit: float, resolution: float, spare: bool) -> None:
    def says(load: float) -> SearchTrial:
        return trial(load, load <= limit, margin=1 - load / limit if spare else 0.1)

    trials = searched(says, whole=False, resolution=resolution)
    found = found_load(trials)
    assert found is not None
    assert found <= limit <= found * (1 + resolution)
    bracket = 4 if spare else 2
    halvings = ceil(log2(max(1.0, log(bracket) / log(1 + resolution))))
    assert len(trials) <= abs(log2(limit)) + 3 + halvings


@given(verdicts=st.lists(st.booleans(), min_size=40, max_size=40), whole=st.booleans())
def test_it_ends_whatever_is_said(verdicts: list[bool], whole: bool) -> None:
    """Noise without any order: no load is tried twice, and the largest that passed is found."""
    said = iter(verdicts)
    trials = searched(lambda load: trial(load, next(said)), whole=whole)
    assert found_load(trials) == max((one.load for one in trials if one.met), default=None)


def request(sent_s: float, first_s: float, end_s: float, tokens: int = 11, **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "request_id": "r", "attempt": 0, "item_index": 0, "replica": 0, "scheduled_ns": None,
        "sent_ns": round(sent_s * SECOND), "first_token_ns": round(first_s * SECOND), "end_ns": round(end_s * SECOND),
        "chunk_ns": (), "chunk_tokens": (), "input_tokens": 1, "cached_tokens": 0, "output_tokens": tokens,
        "status": "ok",
    }  # fmt: skip
    return RequestRecord(**{**fields, **changes})


def window(start_s: float, end_s: float) -> Window:
    return Window(start_ns=round(start_s * SECOND), end_ns=round(end_s * SECOND), phase=Phase.STEADY)


CLOSED = LoadSpec(concurrency=4)


def test_a_trial_holds_the_requests_of_its_window_against_the_limits() -> None:
    """TPOTs of 0.04 and 0.06; a single token has none; one was sent before the window."""
    served = [request(1, 2, 2.4), request(1, 2, 2.6), request(1, 2, 2, tokens=1), request(0, 2, 9)]
    slo = SloSpec(tpot_s=0.05, share=0.5)
    found = judge(CLOSED, 4, served, window(0.5, 3), slo)
    assert (found.load, found.requests, found.met) == (4, 3, True)
    assert found.slo_share == pytest.approx(2 / 3)
    assert (found.tpot_s, found.ttft_s) == (pytest.approx(0.05), pytest.approx(1.0))  # medians, as the share says
    assert found.margin == pytest.approx(0.0)
    strict = judge(CLOSED, 4, served, window(0.5, 3), SloSpec(tpot_s=0.05, share=0.9))
    assert (strict.met, strict.reason) == (False, "66.7% of the requests are within the limits")
    assert strict.tpot_s == pytest.approx(0.058) and strict.margin == pytest.approx(1 - 0.058 / 0.05)


def test_every_limit_counts_and_so_does_a_failure() -> None:
    good = request(1, 1.5, 2.5)
    for slo, met in ((SloSpec(ttft_s=0.5), True), (SloSpec(ttft_s=0.4), False), (SloSpec(e2e_s=1.4), False)):
        assert judge(CLOSED, 1, [good], window(0, 3), slo).met == met
    both = judge(CLOSED, 1, [good], window(0, 3), SloSpec(ttft_s=1.0, e2e_s=2.0))
    assert both.margin == pytest.approx(0.25)  # 0.5 of 1 and 1.5 of 2 s: the tighter one
    lost = request(1, 1.5, 2.5, status="failed")
    failed = judge(CLOSED, 1, [lost], window(0, 3), SloSpec(ttft_s=9.0))
    assert (failed.met, failed.slo_share, failed.ttft_s, failed.margin) == (False, 0.0, None, -1.0)


def test_without_a_window_it_failed() -> None:
    found = judge(CLOSED, 4, [request(1, 2, 3)], None, SloSpec(ttft_s=9.0))
    assert (found.met, found.reason, found.requests) == (False, "no steady window", 0)


@pytest.mark.parametrize(("ended", "met"), [(81, True), (79, False)])
def test_requests_that_come_faster_than_they_are_served_fail_however_fast_they_are(ended: int, met: bool) -> None:
    """100 came in the window; 20 left over are two standard deviations, and more than a tenth."""
    load = LoadSpec(arrival="poisson", rate_per_s=10.0)
    served = [
        request(i / 10, i / 10, i / 10 if i <= ended else 99, tokens=1, scheduled_ns=i * SECOND // 10)
        for i in range(1, 101)
    ]  # fmt: skip
    found = judge(load, 10.0, served, window(0, 10), SloSpec(ttft_s=1.0))
    assert found.met == met
    assert found.reason == ("" if met else "requests come faster than they are served")
    assert judge(CLOSED, 10.0, served, window(0, 10), SloSpec(ttft_s=1.0)).met
