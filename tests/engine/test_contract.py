"""What every engine must do, whatever serves the tokens: the fake one and real ones pass the same tests."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from engines import CASES, CONCURRENCY, TOO_LONG, Served, is_apart, served, started, system

from moecap.engine import ENGINES
from moecap.errors import ConfigError
from moecap.records import LoadSpec, ModelShape, PassRecord, Phase, RoutingRecord, ServeRecord


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.vllm) if is_apart(name) else name for name in CASES])
def case(request: pytest.FixtureRequest) -> Served:
    return served(request.param)


def test_every_engine_is_held_to_the_contract() -> None:
    assert {system(**changes).engine for changes in CASES.values()} == set(ENGINES)


def params_by_class(shape: ModelShape) -> dict[str, int]:
    """Parameters of the classes that these models hold, by the shape; a tied head is the embedding."""
    layers = shape.layers
    counted = {
        "mixer": sum(layer.mixer_params for layer in layers),
        "router": sum(layer.router_params for layer in layers),
        "routed_expert": sum(layer.num_experts * layer.expert_params for layer in layers),
        "norm": sum(layer.norm_params for layer in layers) + shape.final_norm_params,
        "embedding": shape.embedding_params,
        "lm_head": shape.lm_head_params,
    }
    return {kind: count for kind, count in counted.items() if count}


def test_facts_agree_with_each_other(case: Served) -> None:
    facts = case.facts
    params = params_by_class(facts.shape)
    by_width = {kind: count * facts.held.bytes_per_param[kind] for kind, count in params.items()}
    assert dict(facts.held.weight_bytes) == pytest.approx(by_width)
    assert 0 < facts.held.resident_weight_bytes <= sum(facts.held.weight_bytes.values())
    assert set(facts.held.compute_dtype) >= {*params, "attention"}
    assert json.loads(json.dumps(facts.settings)) == facts.settings
    assert case.text == "3 + 4 = 7"


def test_requests_get_the_tokens_that_they_ask_for(case: Served) -> None:
    for record in (case.record, case.alone):
        assert [one.request_id for one in record.requests] == [f"r{i}" for i in range(6)]
        assert [one.item_index for one in record.requests] == list(range(6))
        for asked, got in zip(case.requests, record.requests, strict=True):
            assert got.input_tokens == len(asked.prompt_token_ids)
            assert got.output_tokens == sum(got.chunk_tokens) == len(got.output_token_ids)
            assert got.output_tokens == (0 if got.item_index == TOO_LONG else asked.max_new_tokens)
            assert all(0 <= token < case.facts.shape.vocab_size for token in got.output_token_ids)


def test_a_request_beyond_the_context_fails_at_its_index_and_alone(case: Served) -> None:
    prompt = case.requests[TOO_LONG].prompt_token_ids
    assert len(prompt) > case.facts.max_context_tokens
    for record in (case.record, case.alone):
        assert [one.status for one in record.requests] == ["ok", "ok", "failed", "ok", "ok", "ok"]
        failed = record.requests[TOO_LONG]
        assert failed.error and str(case.facts.max_context_tokens) in failed.error
        assert failed.first_token_ns is None


def test_times_are_ordered_and_tokens_come_with_passes(case: Served) -> None:
    for record in (case.record, case.alone):
        ends = {one.started_ns + one.duration_ns for one in record.passes}
        for one in record.requests:
            if one.status == "ok":
                assert one.first_token_ns == one.chunk_ns[0] and one.end_ns == one.chunk_ns[-1]
                assert len(one.chunk_ns) == len(one.chunk_tokens)
                assert one.sent_ns < one.chunk_ns[0]
                if case.is_apart:  # several tokens can arrive at once, and none before its pass ended
                    assert all(before <= after for before, after in pairwise(one.chunk_ns))
                    assert one.chunk_ns[0] > min(ends) and one.chunk_ns[-1] > one.sent_ns
                else:
                    assert all(before < after for before, after in pairwise(one.chunk_ns))
                    assert set(one.chunk_ns) <= ends


def test_intervals_of_passes_join_without_gap_or_overlap(case: Served) -> None:
    """Under a closed loop something is always scheduled, but for the while in which a client asks again."""
    for record in (case.record, case.alone):
        assert [one.pass_id for one in record.passes] == list(range(len(record.passes)))
        for before, after in pairwise(record.passes):
            gap_ns = after.started_ns - before.started_ns - before.duration_ns
            assert gap_ns == 0 or (case.is_apart and gap_ns > 0 and after.phase is Phase.PREFILL)
        assert record.passes[0].started_ns == record.passes[0].launched_ns
        for one in record.passes:
            assert one.started_ns <= one.launched_ns < one.started_ns + one.duration_ns


def test_passes_compute_every_prompt_once_and_one_token_per_output(case: Served) -> None:
    """Prompts in prefill passes, and each output but the first fed back in a decode pass."""
    fits = [one for one in case.requests if one.item_index != TOO_LONG]
    prompt_tokens = sum(len(one.prompt_token_ids) for one in fits)
    outputs = sum(one.max_new_tokens for one in fits)
    for record, concurrency in ((case.record, CONCURRENCY), (case.alone, 1)):
        mixed = tokens_in(record.passes, Phase.MIXED)
        assert case.is_apart or not mixed
        assert tokens_in(record.passes, Phase.PREFILL) + mixed >= prompt_tokens
        assert tokens_in(record.passes, Phase.DECODE) + mixed >= outputs - len(fits)
        assert sum(one.scheduled_tokens for one in record.passes) == prompt_tokens + outputs - len(fits)
        assert sum(one.logits_tokens for one in record.passes) == outputs
        for one in record.passes:
            assert one.valid, one.invalid_reason
            assert one.scheduled_tokens == sum(one.query_lens)
            assert len(one.query_lens) == len(one.context_lens) == one.num_requests <= concurrency
    longest = max(len(one.prompt_token_ids) + one.max_new_tokens - 1 for one in fits)  # its last token is not fed back
    assert max(one.context_lens for one in case.alone.passes) == (longest,)


def tokens_in(passes: Sequence[PassRecord], phase: Phase) -> int:
    return sum(one.scheduled_tokens for one in passes if one.phase is phase)


def test_every_token_is_routed_to_top_k_experts_in_every_layer(case: Served) -> None:
    layers = {layer.index: layer for layer in case.facts.shape.layers if layer.num_experts}
    for record in (case.record, case.alone):
        assert [(one.pass_id, one.layer) for one in record.routing] == [
            (one.pass_id, layer) for one in record.passes for layer in layers
        ]
        for one in record.routing:
            layer, tokens = layers[one.layer], record.passes[one.pass_id].scheduled_tokens
            assert len(one.counts) == layer.num_experts
            assert sum(one.counts) == tokens * layer.top_k
            assert one.distinct == sum(count > 0 for count in one.counts)
            assert layer.top_k <= one.distinct <= min(layer.num_experts, layer.top_k * tokens)
            assert one.distinct <= one.distinct_physical <= layer.num_experts


def test_experts_of_single_tokens_add_up_to_the_counts(case: Served) -> None:
    for one in case.record.routing:
        assert one.token_experts is not None
        assert len(one.token_experts) == case.record.passes[one.pass_id].scheduled_tokens
        assert all(len(set(chosen)) == len(chosen) for chosen in one.token_experts)
        seen = Counter(expert for chosen in one.token_experts for expert in chosen)
        assert tuple(seen[expert] for expert in range(len(one.counts))) == one.counts
    assert all(one.token_experts is None for one in case.alone.routing)


def test_prompts_fire_the_same_experts_alone_and_together(case: Served) -> None:
    """Padding doesn't count, and nothing outlives a `serve`. Rounding may turn a near tie: one token in 50 at most."""
    together, alone = (tokens_per_expert(record, case.is_apart) for record in (case.record, case.alone))
    moved = sum(abs(mine - other) for mine, other in zip(together, alone, strict=True)) / 2
    assert sum(together) == sum(alone)
    assert moved <= sum(alone) / 50


def tokens_per_expert(record: ServeRecord, mixes: bool) -> list[int]:
    """Tokens per (layer, expert) over all prefill passes; over all passes where these mix prompts with answers."""
    seen = [one for one in record.routing if mixes or record.passes[one.pass_id].phase is Phase.PREFILL]
    layers = sorted({one.layer for one in seen})
    return [sum(column) for layer in layers for column in zip(*counts_of(seen, layer), strict=True)]


def counts_of(routing: Sequence[RoutingRecord], layer: int) -> list[tuple[int, ...]]:
    return [one.counts for one in routing if one.layer == layer]


@pytest.mark.parametrize("name", ["resident"])
def test_an_arrival_that_an_engine_does_not_serve_is_named(name: str) -> None:
    with started(system(**CASES[name])) as (engine, _), pytest.raises(ConfigError, match="arrival = 'poisson'"):
        engine.serve((), LoadSpec(arrival="poisson", rate_per_s=1.0), "counts")
