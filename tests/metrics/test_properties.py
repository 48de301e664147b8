"""What holds for any run: bounds between metrics, scaling, order of rows; and cases by hand of several kinds."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hand_made import HELD, LAYER, PEAKS, SHAPE, a_run, one_pass, routed, view
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.metrics import reduce
from moecap.metrics.declare import METRICS
from moecap.metrics.work import pass_work
from moecap.model.cards import find_card
from moecap.records import HeldWeights, ModelShape, PassRecord, Peaks, Phase, RoutingRecord
from moecap.store import RunData

assert reduce.AXES
EXPERTS, TOP_K = LAYER.num_experts, LAYER.top_k


def value(name: str, run: RunData, phase: str | None = None) -> float:
    found = [one for one in METRICS[name].observe(view(run)) if one.phase == phase and one.missing is None]
    (one,) = found
    assert one.numerator is not None and one.denominator is not None
    return one.numerator / one.denominator


@st.composite
def passes_and_routing(draw: Any) -> tuple[tuple[PassRecord, ...], tuple[RoutingRecord, ...]]:
    """Passes one after the other, prefill, decode or mixed, with routing that conserves tokens."""
    passes, routing, now_s = [], [], 0.1
    for index in range(draw(st.integers(1, 6))):
        query = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
        context = tuple(q + draw(st.integers(0, 30)) for q in query)
        phase = draw(st.sampled_from([Phase.PREFILL, Phase.DECODE, Phase.MIXED]))
        seconds = draw(st.floats(0.01, 1.0))
        padded = draw(st.integers(0, 3))
        passes.append(one_pass(index, phase, now_s, seconds, query, context, padded_tokens=padded))
        counts = [0] * EXPERTS
        for _ in range(sum(query)):
            for expert in draw(st.permutations(range(EXPERTS)))[:TOP_K]:
                counts[expert] += 1
        fired = sum(count > 0 for count in counts)
        routing.append(routed(index, tuple(counts), physical=draw(st.integers(fired, EXPERTS))))
        now_s += seconds
    return tuple(passes), tuple(routing)


@settings(max_examples=40, deadline=None)
@given(passes_and_routing())
def test_estimates_without_routing_are_never_below_and_the_physical_scope_never_under(made: Any) -> None:
    run = a_run(passes=made[0], routing=made[1])
    measured = value("s_mbu", run)
    assert measured <= value("mbu_min_bk", run) * (1 + 1e-12) <= value("mbu", run) * (1 + 1e-9)
    assert value("s_mbu_physical", run) >= measured


@settings(max_examples=25, deadline=None)
@given(passes_and_routing(), st.floats(0.2, 5.0))
def test_scaling_laws(made: Any, factor: float) -> None:
    """Bandwidth and FLOP/s scale utilisation inversely, widths bytes directly; FLOPs know no width."""
    run = a_run(passes=made[0], routing=made[1])
    assert PEAKS.memory_bytes_per_s is not None
    faster = replace(
        PEAKS, memory_bytes_per_s=PEAKS.memory_bytes_per_s * factor,
        flops_per_s={dtype: rate * factor for dtype, rate in PEAKS.flops_per_s.items()},
    )  # fmt: skip
    wider = replace(
        HELD, bytes_per_param={kind: width * factor for kind, width in HELD.bytes_per_param.items()},
        kv_bytes_per_element=HELD.kv_bytes_per_element * factor,
        activation_bytes_per_element=HELD.activation_bytes_per_element * factor,
    )  # fmt: skip
    on_faster = replace(run, manifest=replace(run.manifest, peaks=(faster,)))
    held_wider = replace(run, manifest=replace(run.manifest, held=wider))
    for name in ("s_mbu", "s_mbu_physical", "mbu"):
        assert value(name, on_faster) == pytest.approx(value(name, run) / factor)
        assert value(name, held_wider) == pytest.approx(value(name, run) * factor)
    assert value("s_mfu", on_faster) == pytest.approx(value("s_mfu", run) / factor)
    assert value("s_mfu", held_wider) == pytest.approx(value("s_mfu", run))


@settings(max_examples=25, deadline=None)
@given(passes_and_routing(), st.integers(0, 1000))
def test_the_order_of_rows_changes_nothing(made: Any, seed: int) -> None:
    passes, routing = (list(rows) for rows in made)
    straight = a_run(passes=tuple(passes), routing=tuple(routing))
    Random(seed).shuffle(passes)
    Random(seed + 1).shuffle(routing)
    shuffled = a_run(passes=tuple(passes), routing=tuple(routing))
    for name in ("s_mbu", "s_mbu_physical", "mbu", "mbu_min_bk", "s_mfu", "distinct_experts", "expert_load_imbalance"):
        assert value(name, shuffled) == pytest.approx(value(name, straight), rel=1e-12)


def test_two_replicas_are_as_utilised_as_one() -> None:
    """Each of two replicas reads what the only one reads, at the same time, from a deployment of twice the peak."""
    passes = tuple(one_pass(i, Phase.DECODE, 1.0 + i, 1.0, (1, 1), (11, 6)) for i in range(3))
    routing = tuple(routed(i, (2, 2, 0, 0)) for i in range(3))
    alone = a_run(passes=passes, routing=routing)
    others = tuple(replace(one, pass_id=one.pass_id + 3, replica=1) for one in passes)
    assert PEAKS.memory_bytes_per_s is not None
    twice = replace(
        PEAKS, memory_bytes_per_s=2 * PEAKS.memory_bytes_per_s,
        flops_per_s={dtype: 2 * rate for dtype, rate in PEAKS.flops_per_s.items()},
    )  # fmt: skip
    both = a_run(
        passes=passes + others, routing=routing + tuple(replace(one, pass_id=one.pass_id + 3) for one in routing),
        peaks=(twice,),
    )  # fmt: skip
    for name in ("s_mbu", "s_mbu_physical", "mbu", "s_mfu", "overhead_share"):
        assert value(name, both) == pytest.approx(value(name, alone)), name
    one, two = view(alone).needs, view(both).needs
    assert one is not None and two is not None
    weights = sum(HELD.weight_bytes.values())
    assert two.memory_bytes - weights == pytest.approx(2 * (one.memory_bytes - weights))
    assert two.memory_bytes_per_s == pytest.approx(2 * one.memory_bytes_per_s)
    assert two.flops_per_s == pytest.approx({dtype: 2 * rate for dtype, rate in one.flops_per_s.items()})


def test_a_replica_that_ran_outside_the_window_still_has_its_share() -> None:
    inside = one_pass(0, Phase.DECODE, 1.0, 1.0, (1,), (11,))
    outside = replace(one_pass(1, Phase.DECODE, 20.0, 1.0, (1,), (11,)), replica=1)
    routing = tuple(routed(i, (1, 1, 0, 0)) for i in range(2))
    both = a_run(passes=(inside, outside), routing=routing)
    alone = a_run(passes=(inside,), routing=routing[:1])
    assert value("s_mbu", both) == pytest.approx(2 * value("s_mbu", alone))  # of half the peak


def test_every_class_computes_at_its_own_dtype() -> None:
    """Per token 90 matrix parameters of the mixer, 60 of routed experts, 20 shared, 5 dense and 25 of the router."""
    layer = replace(LAYER, routed_matmul_params_per_token=60, shared_matmul_params=20, dense_matmul_params=5)
    shape = replace(SHAPE, layers=(layer,))
    dtypes = {
        "mixer": "bfloat16", "routed_expert": "float4", "shared_expert": "float8", "dense_ffn": "int8",
        "router": "float32", "lm_head": "float16", "attention": "tfloat32",
    }  # fmt: skip
    held = replace(HELD, compute_dtype=dtypes)
    found = worked((one_pass(0, Phase.DECODE, 0.0, 1.0, (1,), (3,)),), [(0, 2)], shape, held)
    assert {dtype: flops[0] for dtype, flops in found.flops.items()} == {
        "bfloat16": 180.0, "float4": 120.0, "float8": 40.0, "int8": 10.0, "float32": 50.0, "float16": 200.0,
        "tfloat32": 8.0 * 3,
    }  # fmt: skip


def worked(
    passes: tuple[PassRecord, ...], distinct: list[tuple[int, int]], shape: ModelShape, held: HeldWeights
) -> Any:
    """Work of passes whose MoE layers fired `distinct` (layer, experts)."""
    rows = tuple(
        RoutingRecord(pass_id=one.pass_id, layer=layer, counts=(1,), distinct=count, distinct_physical=count)
        for one in passes
        for layer, count in distinct
    )
    seen = view(a_run(passes=passes, routing=rows))
    return pass_work(shape, held, seen.passes, seen.routing)


def test_a_chunked_prefill_reads_weights_and_cache_once_a_chunk() -> None:
    """3,000 tokens in chunks of 2,048 and 952, top-2 of 4 all hit: weights are read twice; the second chunk attends to
    all 3,000. Per chunk (mixers 100 + 4 x 50 experts) x 4 bytes; KV 4 elements of 2 bytes a token. Pairs as in one
    whole prefill."""
    chunks = (
        one_pass(0, Phase.PREFILL, 0.0, 1.0, (2048,), (2048,), logits_tokens=0),
        one_pass(1, Phase.PREFILL, 1.0, 1.0, (952,), (3000,), logits_tokens=1),
    )
    found = worked(chunks, [(0, 4)], SHAPE, HELD)
    assert found.weight_bytes.tolist() == [1200.0, 1200.0]
    assert found.kv_bytes.tolist() == [2048 * 8.0, 3000 * 8.0]
    linear = 2 * 3000 * (90 + 110) + 2 * 1 * 100
    assert sum(flops.sum() for flops in found.flops.values()) == linear + 8 * 3000 * 3001 // 2


def test_a_mixed_pass_counts_overall_and_in_no_phase() -> None:
    mixed = one_pass(1, Phase.MIXED, 2.0, 1.0, (5, 1), (5, 9))
    run = a_run(
        passes=(one_pass(0, Phase.DECODE, 1.0, 1.0, (1,), (9,)), mixed),
        routing=(routed(0, (1, 1, 0, 0)), routed(1, (6, 6, 0, 0))),
    )  # fmt: skip
    alone = a_run(passes=run_of_decode(), routing=(routed(0, (1, 1, 0, 0)),))
    assert value("s_mbu", run, "decode") == value("s_mbu", alone, "decode")
    both = 2 * (100 + 2 * 50) * 4 + (9 + 5 + 9) * 8
    assert value("s_mbu", run) == pytest.approx(both / 2.0 / 1e6)


def run_of_decode() -> tuple[PassRecord, ...]:
    return (one_pass(0, Phase.DECODE, 1.0, 1.0, (1,), (9,)),)


def card(model: str) -> tuple[ModelShape, HeldWeights]:
    """Shape, and weights as the checkpoint stores them, with KV in two bytes."""
    found = find_card(model)
    assert found is not None
    from moecap.model.accounting import params_by_class

    widths = {kind: found.stored.bytes[kind] / n for kind, n in params_by_class(found.shape).items() if n}
    held = HeldWeights(
        bytes_per_param=widths, compute_dtype=dict.fromkeys([*widths, "attention", "lm_head"], "bfloat16"),
        kv_bytes_per_element=2.0, activation_bytes_per_element=2.0, weight_bytes=dict(found.stored.bytes),
        resident_weight_bytes=sum(found.stored.bytes.values()),
    )  # fmt: skip
    return found.shape, held


def test_latent_attention_reads_its_latent() -> None:
    """DeepSeek-V2-Lite, one request of 1,000 tokens: 27 layers keep 512 + 64 elements a token. Scores over 576, values
    over 512, 16 heads, 2 FLOPs each."""
    shape, held = card("deepseek-ai/DeepSeek-V2-Lite")
    layers = [(layer.index, 6) for layer in shape.layers if layer.num_experts]
    found = worked((one_pass(0, Phase.DECODE, 0.0, 1.0, (1,), (1000,)),), layers, shape, held)
    assert found.kv_bytes.tolist() == [1000 * 27 * 576 * 2.0]
    linear = 2 * sum(layer.mixer_matmul_params + layer.ffn_matmul_params_per_token for layer in shape.layers)
    scores = 27 * 2 * 16 * (576 + 512) * 1000
    assert found.flops["bfloat16"].tolist() == [linear + 2 * shape.lm_head_matrix_params + scores]


def test_quantised_experts_with_a_bfloat16_cache_and_windows() -> None:
    """gpt-oss-20b, one request of 1,000 tokens, four experts a layer: an expert is 3 x 2,880 x 2,880 weights of 4.25
    bits and 3 x 2,880 biases of two bytes; mixers stay in two bytes; 12 of 24 layers attend to 128 tokens."""
    shape, held = card("openai/gpt-oss-20b")
    layers = [(layer.index, 4) for layer in shape.layers]
    found = worked((one_pass(0, Phase.DECODE, 0.0, 1.0, (1,), (1000,)),), layers, shape, held)
    expert = 3 * 2880 * 2880 * 4.25 / 8 + 3 * 2880 * 2
    mixers = sum(layer.mixer_params for layer in shape.layers) * 2
    assert found.weight_bytes[0] == pytest.approx(mixers + 24 * 4 * expert, rel=1e-12)
    assert found.kv_bytes.tolist() == [(12 * 1000 + 12 * 128) * 2 * 8 * 64 * 2.0]


def test_unknown_peaks_stay_unknown_for_replicas() -> None:
    nothing = Peaks(source="calibrated", memory_bytes_per_s=None, flops_per_s={})
    run = a_run(passes=run_of_decode(), routing=(routed(0, (1, 1, 0, 0)),), peaks=(nothing,))
    assert all(one.missing for one in METRICS["s_mbu"].observe(view(run)))
