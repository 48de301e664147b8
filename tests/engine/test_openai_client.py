"""The streaming client against a server in another thread that knows what it did and when.

Bounds in time only say what can't be: earlier than sent, later than seconds. Everything else is order and count.
"""

import gc
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from completions_server import CompletionsServer, completions_server

from moecap.engine.openai_client import Driven, drive
from moecap.errors import EngineError
from moecap.records import LoadSpec, Request, SearchSpec, SloSpec

LATE_NS = 5 * 10**9


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    with completions_server() as one:
        yield one


def requests(count: int, new: int = 4, arrivals_s: tuple[float, ...] = ()) -> list[Request]:
    return [
        Request(
            request_id=f"r{i}", item_index=i, prompt_token_ids=(1, 2, 3 + i), max_new_tokens=new, seed=i,
            arrival_s=arrivals_s[i] if arrivals_s else None,
        )
        for i in range(count)
    ]  # fmt: skip


def driven(
    server: CompletionsServer, sent: list[Request], load: LoadSpec, timeout_s: float = 30.0, **behave: Any
) -> Driven:
    return drive(server.base_url, "m", sent, load, extra_body={"behave": behave}, timeout_s=timeout_s)


def test_the_server_gets_what_was_asked(server: CompletionsServer) -> None:
    one = requests(1)[0]
    drive(server.base_url + "/", "m", [one], LoadSpec(concurrency=1), extra_body={"priority": 3}, api_key="k",
          timeout_s=30.0)  # fmt: skip
    (seen,) = server.seen
    assert seen.body == {
        "model": "m", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0.0, "top_p": 1.0, "seed": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True,
        "priority": 3,
    }  # fmt: skip
    assert (seen.headers["authorization"], seen.headers["x-request-id"]) == ("Bearer k", "r0")


def test_tokens_have_the_times_at_which_they_came(server: CompletionsServer) -> None:
    before_ns = time.monotonic_ns()
    (record,) = driven(server, requests(1, new=5), LoadSpec(concurrency=1), gap_s=0.03).requests
    (seen,) = server.seen
    assert before_ns <= record.sent_ns <= seen.came_ns
    assert len(record.chunk_ns) == len(seen.written_ns) == 5
    for came_ns, written_ns in zip(record.chunk_ns, seen.written_ns, strict=True):
        assert written_ns <= came_ns < written_ns + LATE_NS
    # each waited for 30 ms before it was written: at least that lies between sending and the first, and first and last
    assert record.first_token_ns == record.chunk_ns[0] >= record.sent_ns + 30_000_000
    assert record.end_ns == record.chunk_ns[-1] >= seen.written_ns[0] + 4 * 30_000_000
    assert (record.status, record.error, record.scheduled_ns) == ("ok", None, None)
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (3, 3, 5)
    assert record.chunk_tokens == (1,) * 5
    assert record.output_token_ids == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("behave", "chunk_tokens", "ids"),
    [
        ({"tokens_per_chunk": 3}, (3, 3, 1), tuple(range(7))),
        ({"tokens_per_chunk": 3, "ids": False, "usage": "each"}, (3, 3, 1), ()),
        ({"tokens_per_chunk": 3, "ids": False}, (None, None, None), ()),
        ({"ids": False}, (1,) * 7, ()),
    ],
)
def test_chunks_hold_as_many_tokens_as_is_known(
    server: CompletionsServer, behave: dict[str, Any], chunk_tokens: tuple[int | None, ...], ids: tuple[int, ...]
) -> None:
    (record,) = driven(server, requests(1, new=7), LoadSpec(concurrency=1), **behave).requests
    assert (record.status, record.chunk_tokens, record.output_tokens) == ("ok", chunk_tokens, 7)
    assert record.output_token_ids == ids


def test_a_closed_loop_keeps_exactly_its_concurrency_in_flight(server: CompletionsServer) -> None:
    """The server ends requests one by one, each when eight are in flight: with seven it would wait for ever."""
    load = LoadSpec(concurrency=8, staggered=False)
    found = driven(server, requests(40), load, timeout_s=10.0, full=8, of=40)
    assert all(one.status == "ok" for one in found.requests)
    assert [seen.in_flight for seen in server.seen] == [*range(1, 9), *[8] * 32]
    assert [one.item_index for one in found.requests] == list(range(40))
    assert [seen.body["prompt"][2] - 3 for seen in server.seen] == list(range(40))  # in their order


def test_staggered_starts_are_spread_over_the_first_request(server: CompletionsServer) -> None:
    """Of 12 tokens, 4 slots: the next starts once the first has brought 3, 6 and 9 tokens."""
    driven(server, requests(4, new=12), LoadSpec(concurrency=4), gap_s=0.005)
    first, *others = server.seen
    for slot, seen in enumerate(others, start=1):
        assert seen.came_ns > first.written_ns[3 * slot - 1]
        assert first.body["prompt"] == [1, 2, 3]


def test_the_rest_starts_when_the_first_request_ends_early(server: CompletionsServer) -> None:
    found = driven(server, requests(5, new=3), LoadSpec(concurrency=5), status=400, message="no")
    assert len(server.seen) == 5
    assert {one.error for one in found.requests} == {"HTTP 400: no"}


ARRIVALS_S = (0.05, 0.1, 0.15, 0.2, 0.25)


def test_an_open_loop_sends_when_it_is_time_whatever_is_in_flight(server: CompletionsServer) -> None:
    """Nobody is answered before all five are there."""
    found = driven(
        server, requests(5, arrivals_s=ARRIVALS_S), LoadSpec(arrival="poisson", rate_per_s=20.0), barrier=5
    )  # fmt: skip
    assert [seen.in_flight for seen in server.seen] == [1, 2, 3, 4, 5]
    scheduled = [one.scheduled_ns for one in found.requests]
    assert [(later or 0) - (earlier or 0) for earlier, later in pairwise(scheduled)] == pytest.approx([5e7] * 4, abs=2)
    for one, seen in zip(found.requests, server.seen, strict=True):
        assert one.scheduled_ns is not None and one.status == "ok"
        assert one.scheduled_ns <= one.sent_ns <= seen.came_ns < one.scheduled_ns + LATE_NS
    delay = found.client.send_delay_max_s
    assert delay == pytest.approx(max(one.sent_ns - (one.scheduled_ns or 0) for one in found.requests) / 1e9)


def test_a_capped_open_loop_keeps_requests_back(server: CompletionsServer) -> None:
    load = LoadSpec(arrival="burst", rate_per_s=20.0, burstiness=0.5, max_concurrency=2)
    found = driven(server, requests(6, arrivals_s=(0.0,) * 6), load, gap_s=0.01)
    assert max(seen.in_flight for seen in server.seen) == 2
    assert all(one.status == "ok" for one in found.requests)
    third = found.requests[2]
    assert third.sent_ns >= min(one.end_ns or 0 for one in found.requests[:2])
    assert found.client.send_delay_max_s is not None and found.client.send_delay_max_s >= 0.08  # two times 4 tokens


def test_64_streams_at_once(server: CompletionsServer) -> None:
    found = driven(server, requests(128, new=20), LoadSpec(concurrency=64, staggered=False), gap_s=0.005)
    assert max(seen.in_flight for seen in server.seen) == 64
    for one in found.requests:
        assert one.status == "ok" and one.chunk_tokens == (1,) * 20
        assert all(earlier <= later for earlier, later in pairwise(one.chunk_ns))
    client = found.client
    assert client.loop_lag_samples > 10 and client.send_delay_p50_s is None
    assert 0 < (client.loop_lag_p50_s or 0) <= (client.loop_lag_p99_s or 0) <= (client.loop_lag_max_s or 0)
    assert 0 < client.cpu_s <= client.wall_s
    # two rounds of 20 gaps of 5 ms each take at least 0.2 s
    assert client.wall_s >= 0.2


@pytest.mark.parametrize(
    ("behave", "told", "tokens"),
    [
        ({"status": 503, "message": "busy"}, "HTTP 503: busy", 0),
        ({"fail_after": 2, "fail": "break"}, "the connection broke after 2 events", 2),
        ({"fail_after": 2, "fail": "end"}, "the stream ended after 2 events, before its end was told", 2),
        ({"fail_after": 2, "fail": "error"}, "out of memory", 2),
        ({"barrier": 99}, "not answered within 0.3 s, 0 events had come", 0),
    ],
)
def test_a_request_fails_alone_and_says_why(
    server: CompletionsServer, behave: dict[str, Any], told: str, tokens: int
) -> None:
    (bad,) = driven(server, requests(1), LoadSpec(concurrency=1), timeout_s=0.3, **behave).requests
    assert bad.status == "failed" and bad.error is not None and told in bad.error
    assert len(bad.chunk_ns) == tokens
    assert bad.end_ns is not None and bad.end_ns >= bad.sent_ns
    if "barrier" not in behave:
        (good,) = driven(server, requests(1), LoadSpec(concurrency=1)).requests
        assert good.status == "ok"


def test_nobody_there_is_an_error_of_the_engine(server: CompletionsServer) -> None:
    server.stop()
    with pytest.raises(EngineError, match=r"no server at http://127.0.0.1:\d+: .*0 of 3 requests were answered"):
        driven(server, requests(3), LoadSpec(concurrency=2))


def test_a_server_that_goes_away_is_an_error_of_the_engine_even_at_the_last_request(server: CompletionsServer) -> None:
    import threading

    def stop_at_first_request() -> None:
        while not server.seen:
            time.sleep(0.01)
        server.stop()

    watcher = threading.Thread(target=stop_at_first_request)
    watcher.start()
    with pytest.raises(EngineError, match=r"0 of 1 requests were answered; before: the connection broke"):
        driven(server, requests(1, new=1000), LoadSpec(concurrency=1), gap_s=0.05)
    watcher.join()


def test_no_proxy_stands_between(server: CompletionsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (record,) = driven(server, requests(1), LoadSpec(concurrency=1)).requests
    assert record.status == "ok"


def test_the_collector_is_left_as_it_was(server: CompletionsServer) -> None:
    assert gc.isenabled()
    driven(server, requests(1), LoadSpec(concurrency=1))
    assert gc.isenabled()


def test_loads_that_can_not_be_driven() -> None:
    search = LoadSpec(search=SearchSpec(slo=SloSpec(ttft_s=1.0)))
    with pytest.raises(ValueError, match="searched for"):
        drive("http://127.0.0.1:9", "m", requests(1), search, timeout_s=1.0)
    with pytest.raises(ValueError, match="arrival_s"):
        drive("http://127.0.0.1:9", "m", requests(1), LoadSpec(arrival="poisson", rate_per_s=1.0), timeout_s=1.0)
    with pytest.raises(ValueError, match="an id each"):
        drive("http://127.0.0.1:9", "m", requests(1) * 2, LoadSpec(concurrency=1), timeout_s=1.0)
