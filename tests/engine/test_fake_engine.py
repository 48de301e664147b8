"""The fake engine keeps the contract that real ones must keep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from moecap.engine.fake import EXPERTS, LAYERS, TOP_K, FakeEngine, virtual_shape, virtual_weights
from moecap.errors import ConfigError, EngineError
from moecap.records import LoadSpec, ModelSpec, Phase, Placement, Request, ServeRecord, SystemSpec

PLACEMENT = Placement(node_id="n", hostname="h", kind="cpu")


def started(**args: Any) -> FakeEngine:
    engine = FakeEngine()
    args = {"pass_s": 0.0} | args
    engine.start(ModelSpec(name="m"), SystemSpec(name="s", engine="fake", node="cpu", args=args), PLACEMENT)
    return engine


def requests(*lengths: int, new: int = 3) -> list[Request]:
    return [
        Request(request_id=f"r{i}", item_index=i, prompt_token_ids=tuple(range(length)), max_new_tokens=new)
        for i, length in enumerate(lengths)
    ]


def serve(
    engine: FakeEngine, *lengths: int, concurrency: int = 2, routing: Literal["counts", "tokens"] = "counts"
) -> ServeRecord:
    return engine.serve(requests(*lengths), LoadSpec(concurrency=concurrency), routing)


def test_two_requests_at_once_take_one_prefill_and_two_decode_passes() -> None:
    record = serve(started(), 5, 7)
    assert [(one.phase, one.query_lens, one.context_lens) for one in record.passes] == [
        (Phase.PREFILL, (5, 7), (5, 7)), (Phase.DECODE, (1, 1), (6, 8)), (Phase.DECODE, (1, 1), (7, 9)),
    ]  # fmt: skip
    assert [one.scheduled_tokens for one in record.passes] == [12, 2, 2]


def test_a_third_request_waits_for_a_free_slot() -> None:
    record = serve(started(), 5, 7, 2)
    assert [one.num_requests for one in record.passes] == [2, 2, 2, 1, 1, 1]
    third = record.requests[2]
    assert third.sent_ns >= record.requests[0].end_ns  # type: ignore[operator]


def test_every_token_is_routed_to_top_k_experts_in_every_layer() -> None:
    record = serve(started(), 5, 7, 2, routing="tokens")
    assert len(record.routing) == LAYERS * len(record.passes)
    tokens = {one.pass_id: one.scheduled_tokens for one in record.passes}
    for one in record.routing:
        assert sum(one.counts) == tokens[one.pass_id] * TOP_K
        assert one.distinct == sum(count > 0 for count in one.counts)
        assert TOP_K <= one.distinct <= min(EXPERTS, TOP_K * tokens[one.pass_id])
        assert one.token_experts is not None
        assert len(one.token_experts) == tokens[one.pass_id]


def test_intervals_of_passes_join_and_tokens_carry_their_ends() -> None:
    record = serve(started(pass_s=0.001), 5, 7)
    ends = [one.started_ns + one.duration_ns for one in record.passes]
    assert [one.started_ns for one in record.passes[1:]] == ends[:-1]
    assert record.requests[0].chunk_ns == tuple(ends)
    assert all(one.duration_ns >= 1_000_000 for one in record.passes)


def test_the_same_requests_give_the_same_tokens_and_text_survives_a_round_trip() -> None:
    first, second = serve(started(), 5, 7), serve(started(), 5, 7)
    # sum(range(5)) = 10, so the first request generates 10, 11, 12
    assert first.requests[0].output_token_ids == second.requests[0].output_token_ids == (10, 11, 12)
    engine = started()
    assert engine.decode(engine.encode("3 + 4 = 7")) == "3 + 4 = 7"


def test_a_request_beyond_the_context_fails_at_its_index_and_alone() -> None:
    record = serve(started(), 5, 4096, 2)
    assert [one.status for one in record.requests] == ["ok", "failed", "ok"]
    assert record.requests[1].output_tokens == 0


def serve_open(*arrivals_s: float, most: int | None = None, new: int = 3) -> ServeRecord:
    """Passes of one second on the engine's own clock."""
    engine = started(pass_s=1.0, clock="simulated")
    plain = requests(*(4,) * len(arrivals_s), new=new)
    came = [replace(one, arrival_s=at) for one, at in zip(plain, arrivals_s, strict=True)]
    return engine.serve(came, LoadSpec(arrival="poisson", rate_per_s=1.0, max_concurrency=most), "counts")


def seconds(record: ServeRecord, *times_ns: int | None) -> list[float]:
    """Since the first request was scheduled, which is when the first pass began."""
    return [(time_ns - record.passes[0].started_ns) / 1e9 for time_ns in times_ns if time_ns is not None]


def test_requests_of_an_open_loop_are_sent_when_they_arrive_and_join_at_the_next_pass() -> None:
    """By hand: the first prefills from 0 to 1; the second, come at 0.5, from 1 to 2; both decode until 4; then nothing
    until the third comes at 9."""
    record = serve_open(0.0, 0.5, 9.0)
    assert [seconds(record, one.scheduled_ns, one.sent_ns, *one.chunk_ns) for one in record.requests] == [
        [0.0, 0.0, 1.0, 3.0, 4.0], [0.5, 0.5, 2.0, 3.0, 4.0], [9.0, 9.0, 10.0, 11.0, 12.0],
    ]  # fmt: skip
    assert [one.num_requests for one in record.passes] == [1, 1, 2, 2, 1, 1, 1]
    assert seconds(record, *(one.started_ns for one in record.passes)) == [0, 1, 2, 3, 9, 10, 11]


def test_a_capped_open_loop_keeps_requests_back_until_one_ends() -> None:
    """By hand: one at a time takes 3 s each; the second came at 1, the third while nothing was in flight."""
    record = serve_open(0.0, 1.0, 8.0, most=1)
    assert [seconds(record, one.scheduled_ns, one.sent_ns, one.end_ns) for one in record.requests] == [
        [0.0, 0.0, 3.0], [1.0, 3.0, 6.0], [8.0, 8.0, 11.0],
    ]  # fmt: skip


def test_passes_take_longer_with_more_requests_as_told() -> None:
    engine = started(pass_s=0.1, pass_s_per_request=0.02, clock="simulated")
    record = serve(engine, 5, 7, 2, concurrency=3)
    assert {one.duration_ns for one in record.passes} == {160_000_000}


def test_it_fails_as_told() -> None:
    with pytest.raises(EngineError, match="told to fail at start"):
        started(fail_at_start=True)
    engine = started(crash_at_request=2)
    serve(engine, 5, 7)
    with pytest.raises(EngineError, match="request 2"):
        serve(engine, 5)
    with pytest.raises(ConfigError, match=r"args\.speed"):
        started(speed=9)


def test_weights_add_up_to_the_shape() -> None:
    """By hand: mixer 4 x 8 x 8 = 256, router 8 x 4 = 32, expert 3 x 8 x 16 = 384, norms 16, head 256 x 8 = 2,048."""
    shape, held = virtual_shape("m"), virtual_weights()
    params = 2 * (256 + 32 + 4 * 384 + 16) + 2 * 2048 + 8
    assert held.resident_weight_bytes == 4 * params == sum(held.weight_bytes.values())
    assert shape.layers[0].ffn_matmul_params_per_token == 32 + 2 * 384
