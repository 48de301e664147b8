"""The fake engine keeps the contract that real ones must keep."""

from __future__ import annotations

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
