"""Windows of open loops and what was in flight in them, by hand."""

from typing import Any

import pytest

from moecap.records import ClientRecord, LoadSpec, Phase, RequestRecord, Window
from moecap.windows import load_check, mean_in_flight, open_loop_window, slow_client, steady_window

POISSON = LoadSpec(arrival="poisson", rate_per_s=1.0)


def request(index: int, came: int, end: int | None, **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "request_id": f"r{index}", "attempt": 0, "item_index": index, "replica": 0, "scheduled_ns": came,
        "sent_ns": came, "first_token_ns": came + 1, "end_ns": end, "chunk_ns": (), "chunk_tokens": (),
        "input_tokens": 1, "cached_tokens": 0, "output_tokens": 1, "status": "ok",
    }  # fmt: skip
    return RequestRecord(**{**fields, **changes})


def window(start_ns: int, end_ns: int) -> Window:
    return Window(start_ns=start_ns, end_ns=end_ns, phase=Phase.STEADY)


def test_an_open_loop_opens_when_its_first_arrivals_have_ended_and_closes_at_the_last_arrival() -> None:
    served = [request(2, 30, 95), request(0, 0, 40), request(1, 10, 25), request(3, 90, 99)]  # in any order
    assert open_loop_window(served, filling=2) == window(40, 90)
    assert open_loop_window(served, filling=1) == window(40, 90)
    assert open_loop_window(served, filling=0) == window(0, 90)
    assert steady_window(served, POISSON, 2) == window(40, 90)


def test_what_is_kept_back_counts_by_its_arrival() -> None:
    held = request(3, 90, 150, sent_ns=140)
    assert open_loop_window([request(0, 0, 40), held], filling=1) == window(40, 90)


def test_no_window_in_a_system_that_does_not_keep_up_or_does_not_answer() -> None:
    assert open_loop_window([request(0, 0, 100), request(1, 50, 200)], filling=1) is None
    silent = [request(0, 0, 10), request(1, 50, None, first_token_ns=None, status="failed")]
    assert open_loop_window(silent, filling=1) is None
    assert open_loop_window([request(0, 0, 10)], filling=1) is None


def test_the_mean_in_flight_is_the_integral_over_the_window() -> None:
    """Between 100 and 200: one all the time, one for 30, one for 20, one not at all, one without an end for 10."""
    served = [request(0, 0, 900), request(1, 120, 150), request(2, 50, 120), request(3, 0, 90), request(4, 190, None)]
    assert mean_in_flight(served, window(100, 200)) == pytest.approx(1 + 0.3 + 0.2 + 0.1)


def test_a_closed_loop_is_held_against_its_concurrency() -> None:
    two = [request(0, 0, 1000), request(1, 0, 1000)]
    assert load_check(two, window(100, 200), LoadSpec(concurrency=2)) == ""
    told = load_check([*two[:1], request(1, 0, 180)], window(100, 200), LoadSpec(concurrency=2))
    assert told == "1.80 requests were in flight, 2 were asked"


def test_an_open_loop_is_held_against_littles_law() -> None:
    """One request of 10 after the other: 1 in flight, completions 0.1 per unit x 10 units each."""
    served = [request(i, 10 * i, 10 * i + 10) for i in range(60)]
    assert load_check(served, window(100, 500), POISSON) == ""
    assert load_check(served, window(100, 290), POISSON) is None  # 19 completed
    lost = [request(i, 10 * i, 10 * i + 10, status="ok" if i % 4 else "failed") for i in range(60)]
    # of 40 that end inside 10 failed: they were in flight, and their time isn't in rate x time
    assert load_check(lost, window(100, 500), POISSON) == "1.00 requests were in flight, their rate x time says 0.75"


@pytest.mark.parametrize(
    ("lag_s", "gaps_s", "slow"),
    [
        (0.0024, (0.010, 0.010, 0.500), False),  # a quarter of 10 ms is 2.5 ms
        (0.0026, (0.010, 0.010, 0.500), True),
        (0.0009, (0.002, 0.002), False),  # what an idle loop's timers show
        (0.0011, (0.002, 0.002), True),
        (0.5, (), False),  # nothing to hold it against
    ],
)
def test_a_client_that_is_late_is_told(lag_s: float, gaps_s: tuple[float, ...], slow: bool) -> None:
    client = ClientRecord(
        loop_lag_p50_s=0.0, loop_lag_p99_s=lag_s, loop_lag_max_s=1.0, loop_lag_samples=9, send_delay_p50_s=None,
        send_delay_p99_s=None, send_delay_max_s=None, cpu_s=0.1, wall_s=1.0,
    )  # fmt: skip
    times = [0]
    for gap_s in gaps_s:
        times.append(times[-1] + round(1e9 * gap_s))
    found = slow_client(client, [request(0, 0, 10, chunk_ns=tuple(times))])
    assert (found is not None) == slow
    assert slow_client(None, [request(0, 0, 10, chunk_ns=tuple(times))]) is None
