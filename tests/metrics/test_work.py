"""Bytes and FLOPs of passes against arithmetic done by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hand_made import HELD, LAYER, SHAPE, a_run, one_pass, routed, view
from hypothesis import given
from hypothesis import strategies as st

from moecap.metrics.columns import Passes
from moecap.metrics.work import PassWork, kv_held_bytes, pass_work
from moecap.records import HeldWeights, LayerShape, ModelShape, PassRecord, Phase, RoutingRecord

PREFILL = one_pass(0, Phase.PREFILL, 0.0, 1.0, (100, 50, 7), (100, 50, 7))
DECODE = one_pass(1, Phase.DECODE, 1.0, 0.5, (1, 1, 1), (101, 51, 8))


def work(
    passes: tuple[PassRecord, ...],
    routing: tuple[RoutingRecord, ...],
    shape: ModelShape = SHAPE,
    held: HeldWeights = HELD,
) -> PassWork:
    seen = view(a_run(passes=passes, routing=routing))
    return pass_work(shape, held, seen.passes, seen.routing)


def qwen3_30b() -> ModelShape:
    """Qwen3-30B-A3B from its published dimensions: hidden 2048, 32 query and 4 KV heads of 128, 48 layers of 128
    experts of width 768, top-8, vocabulary 151,936, untied."""
    hidden, heads, kv_heads, head_dim, width = 2048, 32, 4, 128, 768
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    expert, router = 3 * hidden * width, hidden * 128
    layers = tuple(
        LayerShape(
            index=index, mixer="full_attention", mixer_params=attention + 2 * head_dim, mixer_matmul_params=attention,
            score_flops_per_pair=4 * heads * head_dim, kv_elements_per_token=2 * kv_heads * head_dim,
            window_tokens=None, num_experts=128, top_k=8, expert_params=expert, router_params=router,
            norm_params=2 * hidden, ffn_matmul_params_per_token=router + 8 * expert,
        )
        for index in range(48)
    )  # fmt: skip
    vocabulary = 151_936 * hidden
    return ModelShape(
        name="Qwen3-30B-A3B", model_type="qwen3_moe", hidden_size=hidden, vocab_size=151_936, layers=layers,
        embedding_params=vocabulary, lm_head_params=vocabulary, lm_head_matrix_params=vocabulary,
        final_norm_params=hidden,
    )  # fmt: skip


BF16 = replace(
    HELD,
    bytes_per_param=dict.fromkeys(HELD.bytes_per_param, 2.0),
    compute_dtype=dict.fromkeys(HELD.compute_dtype, "bfloat16"),
    activation_bytes_per_element=0.0,  # the worked example leaves activations out
)


def test_worked_example_of_qwen3_30b() -> None:
    """Every number of a worked example that was made by hand from the published parameter counts."""
    routing = [routed(0, (157 * 8 // 128,) * 128, layer=layer) for layer in range(48)]
    routing += [routed(1, (1,) * 24 + (0,) * 104, layer=layer) for layer in range(48)]
    found = work((PREFILL, DECODE), tuple(routing), qwen3_30b(), BF16)
    assert found.weight_bytes.tolist() == [59_794_022_400, 12_683_599_872]
    assert found.kv_bytes.tolist() == [15_433_728, 15_728_640]
    assert found.physical_bytes.tolist() == [60_473_425_920, 13_347_528_704]
    assert found.flops["bfloat16"].tolist() == [864_237_649_920, 18_375_770_112]
    assert (found.weight_bytes + found.kv_bytes).sum() == 72_508_784_640
    # every expert: as in prefill; min(B k, E): 3 tokens x 8 are at most 24 experts
    assert found.weight_bytes_all_experts.tolist() == [59_794_022_400] * 2
    assert found.weight_bytes_min_bk.tolist() == [59_794_022_400, 12_683_599_872]


def test_physical_bytes_by_hand() -> None:
    """Two decode requests of which one row more is padding; experts 0 and 1 fired, 3 with padding.

    weights: mixer 100 and 3 experts x 50, router 10, norms 6 + 5, lm_head 100: 371 x 4; KV read (8 + 3) x 4 elements
    x 2 bytes = 88, written 2 x 4 x 2 = 16; embedding rows 3 x 5 x 4 = 60; activations: 3 rows x (5 + 30) and 2 logits
    rows x (3 x 5 + 20), x 4 = 700.
    """
    decode = one_pass(0, Phase.DECODE, 0, 1, (1, 1), (8, 3), padded_tokens=1)
    found = work((decode,), (routed(0, (2, 2, 0, 0), physical=3),))
    assert found.physical_bytes.tolist() == [371 * 4 + 88 + 16 + 60 + 700]
    assert found.weight_bytes.tolist() == [(100 + 2 * 50) * 4]
    assert found.weight_bytes_min_bk.tolist() == [(100 + 4 * 50) * 4]


def test_rows_of_further_tables_are_read_and_passed_on() -> None:
    """7 elements beside the 5: read once and written once per row, of two requests and one of padding."""
    decode = one_pass(0, Phase.DECODE, 0, 1, (1, 1), (8, 3), padded_tokens=1)
    plain, more = (
        work((decode,), (routed(0, (2, 2, 0, 0)),), replace(SHAPE, further_row_elements=count)).physical_bytes[0]
        for count in (0, 7)
    )
    assert more - plain == 3 * 7 * (4 + 4)


def test_without_logits_the_lm_head_is_not_read() -> None:
    chunk = one_pass(0, Phase.PREFILL, 0, 1, (6,), (6,), logits_tokens=0)
    whole = one_pass(1, Phase.PREFILL, 0, 1, (6,), (6,))
    found = work((chunk, whole), (routed(0, (6, 6, 0, 0)), routed(1, (6, 6, 0, 0))))
    head, activations = 100 * 4, (3 * 5 + 20) * 4
    assert found.physical_bytes[1] - found.physical_bytes[0] == head + activations
    assert found.flops["float32"][1] - found.flops["float32"][0] == 2 * 100


def test_flops_by_hand() -> None:
    """A prefill of 3, a chunk of 2 after 4: 5 tokens x 2 x (90 + 110), pairs 6 and 5 + 6 of 8 FLOPs, 2 logits rows."""
    mixed = one_pass(0, Phase.MIXED, 0, 1, (3, 2), (3, 6))
    found = work((mixed,), (routed(0, (5, 5, 0, 0)),))
    assert found.flops["float32"].tolist() == [5 * 2 * 200 + (6 + 11) * 8 + 2 * 2 * 100]


def test_compute_dtypes_are_kept_apart() -> None:
    held = replace(HELD, compute_dtype={**HELD.compute_dtype, "routed_expert": "int8"})
    found = work((one_pass(0, Phase.DECODE, 0, 1, (1,), (2,)),), (routed(0, (1, 1, 0, 0)),), held=held)
    assert found.flops["int8"].tolist() == [2 * 100]
    assert found.flops["float32"].tolist() == [2 * 90 + 2 * 10 + 2 * 8 + 2 * 100]


def test_windows_and_states() -> None:
    """A window of 4 in a second layer: 3 new tokens after 7 attend together to 4 + 3 - 1 = 6 tokens; a third layer
    keeps 12 elements of state and no KV."""
    windowed = replace(LAYER, index=1, mixer="sliding_attention", window_tokens=4)
    linear = replace(LAYER, index=2, mixer="linear", kv_elements_per_token=0, state_elements=12, score_flops_per_pair=0)
    shape = replace(SHAPE, layers=(LAYER, windowed, linear))
    passes = (one_pass(0, Phase.PREFILL, 0, 1, (3,), (10,)), one_pass(1, Phase.DECODE, 1, 1, (1,), (10,)))
    routing = tuple(routed(p, (3, 3, 0, 0), layer=layer) for p in (0, 1) for layer in range(3))
    found = work(passes, routing, shape)
    assert found.kv_bytes.tolist() == [(10 * 4 + 6 * 4 + 12) * 2, (10 * 4 + 4 * 4 + 12) * 2]
    seen = view(a_run(passes=passes, routing=routing))
    assert kv_held_bytes(shape, HELD, seen.passes).tolist() == [(10 * 4 + 4 * 4 + 12) * 2] * 2
    # pairs: full 8 + 9 + 10 and 10; windowed 4 per query
    scores = [(27 + 12) * 8, (10 + 4) * 8]
    per_token = 2 * 3 * 200
    assert found.flops["float32"].tolist() == [3 * per_token + scores[0] + 200, per_token + scores[1] + 200]


INDEXED = replace(
    LAYER,
    mixer="mla",
    selected_max=4,
    index_elements_per_key=3,
    index_flops_per_pair=7,
    activation_elements_per_token=0,
)
"""Keys of 4 elements, of which a query attends to 4 at most, and the indexer's own of 3."""


def kv_written_bytes(passes: tuple[PassRecord, ...], shape: ModelShape) -> list[float]:
    """What is physical beyond the same shape without any key of its own."""
    routing = tuple(routed(one.pass_id, (1, 1, 0, 0)) for one in passes)
    bare = replace(
        LAYER, kv_elements_per_token=0, activation_elements_per_token=shape.layers[0].activation_elements_per_token
    )
    found, without = work(passes, routing, shape), work(passes, routing, replace(shape, layers=(bare,)))
    return list(found.physical_bytes - found.kv_bytes - without.physical_bytes + without.kv_bytes)


def test_selected_keys_by_hand() -> None:
    """Below the selection (3 of 3 tokens), a decode step above it (4 of 10), a prefill of 6 (1 + 2 + 3 + 4 + 4 + 4 = 18
    pairs, at most all 6 read), and two queries after 8 (8 pairs, so at most 8 of 10 read). The indexer scores and reads
    all: 3; 10; 21 pairs of 6; 9 + 10 of 10."""
    passes = (
        one_pass(0, Phase.DECODE, 0, 1, (1,), (3,)), one_pass(1, Phase.DECODE, 1, 1, (1,), (10,)),
        one_pass(2, Phase.PREFILL, 2, 1, (6,), (6,)), one_pass(3, Phase.PREFILL, 3, 1, (2,), (10,)),
    )  # fmt: skip
    shape = replace(SHAPE, layers=(INDEXED,))
    found = work(passes, tuple(routed(p, (1, 1, 0, 0)) for p in range(4)), shape)
    read = [3 * 4 + 3 * 3, 4 * 4 + 10 * 3, 6 * 4 + 6 * 3, 8 * 4 + 10 * 3]
    assert found.kv_bytes.tolist() == [elements * 2 for elements in read]
    scores = [3 * 8 + 3 * 7, 4 * 8 + 10 * 7, 18 * 8 + 21 * 7, 8 * 8 + 19 * 7]
    tokens = [1, 1, 6, 2]
    assert found.flops["float32"].tolist() == [
        2 * 200 * n + attention + 200 for n, attention in zip(tokens, scores, strict=True)
    ]
    assert kv_written_bytes(passes, shape) == [n * (4 + 3) * 2 for n in tokens]
    seen = view(a_run(passes=passes, routing=(routed(0, (1, 1, 0, 0)),)))
    assert kv_held_bytes(shape, HELD, seen.passes).tolist() == [n * (4 + 3) * 2 for n in (3, 10, 6, 10)]


def test_a_choice_made_elsewhere_reads_no_index() -> None:
    shared = replace(INDEXED, index_elements_per_key=0, index_flops_per_pair=0)
    decode = one_pass(0, Phase.DECODE, 0, 1, (1,), (10,))
    found = work((decode,), (routed(0, (1, 1, 0, 0)),), replace(SHAPE, layers=(shared,)))
    assert found.kv_bytes.tolist() == [4 * 4 * 2]
    assert found.flops["float32"].tolist() == [2 * 200 + 4 * 8 + 200]


HEAVY = replace(
    LAYER, mixer="compressed_attention", window_tokens=4, tokens_per_entry=8, elements_per_entry=5, waiting_elements=70
)
"""An entry of 5 elements per 8 tokens, all attended to, and a window of 4."""
SPARSE = replace(
    HEAVY, tokens_per_entry=2, selected_max=3, index_elements_per_key=1, index_flops_per_pair=7,
    tokens_per_index_key=2, waiting_elements=20,
)  # fmt: skip
"""An entry per 2 tokens, of which a query attends to 3 at most by a key of 1 element each."""


def test_compressed_entries_by_hand() -> None:
    """Token 16 completes a second entry of 8 and an eighth of 2; token 17 finds them, and completes none. A prefill of
    10: windows 1 + 2 + 3 + 7 x 4 = 34 pairs of 10 tokens; an entry of 8 for the last 3 queries; entries of 2 for
    1 + 1 + 2 + 2 + (5 queries with at least 3) x 3 = 21 pairs, and all 1 + 1 + 2 + 2 + 3 + 3 + 4 + 4 + 5 = 25 scored, 5
    read."""
    passes = (
        one_pass(0, Phase.DECODE, 0, 1, (1,), (16,)), one_pass(1, Phase.DECODE, 1, 1, (1,), (17,)),
        one_pass(2, Phase.PREFILL, 2, 1, (10,), (10,)),
    )  # fmt: skip
    routing = tuple(routed(p, (1, 1, 0, 0)) for p in range(3))
    seen = view(a_run(passes=passes, routing=routing))
    linear = [2 * 200 * n + 200 for n in (1, 1, 10)]

    heavy = replace(SHAPE, layers=(HEAVY,))
    found = work(passes, routing, heavy)
    assert found.kv_bytes.tolist() == [2 * (4 * 4 + 2 * 5), 2 * (4 * 4 + 2 * 5), 2 * (10 * 4 + 5)]
    assert (found.flops["float32"] - linear).tolist() == [(4 + 2) * 8, (4 + 2) * 8, (34 + 3) * 8]
    assert kv_written_bytes(passes, heavy) == [2 * (4 + 5), 2 * 4, 2 * (10 * 4 + 5)]
    held = kv_held_bytes(heavy, HELD, seen.passes)
    assert held.tolist() == [2 * (16 + 10 + 70), 2 * (16 + 10 + 70), 2 * (16 + 5 + 70)]

    sparse = replace(SHAPE, layers=(SPARSE,))
    found = work(passes, routing, sparse)
    assert found.kv_bytes.tolist() == [2 * (16 + 3 * 5 + 8)] * 2 + [2 * (10 * 4 + 5 * 5 + 5)]
    assert (found.flops["float32"] - linear).tolist() == [(4 + 3) * 8 + 8 * 7] * 2 + [(34 + 21) * 8 + 25 * 7]
    assert kv_written_bytes(passes, sparse) == [2 * (4 + 5 + 1), 2 * 4, 2 * (10 * 4 + 5 * (5 + 1))]
    held = kv_held_bytes(sparse, HELD, seen.passes)
    assert held.tolist() == [2 * (16 + 8 * 6 + 20)] * 2 + [2 * (16 + 5 * 6 + 20)]


@given(
    q=st.integers(1, 40),
    before=st.integers(0, 60),
    window=st.one_of(st.none(), st.integers(1, 50)),
)
def test_causal_pairs_and_attended_tokens_equal_counting(q: int, before: int, window: int | None) -> None:
    """Against a loop over queries that collects the attended positions."""
    seen: set[int] = set()
    pairs = 0
    for position in range(before, before + q):
        first = 0 if window is None else max(0, position - window + 1)
        seen |= set(range(first, position + 1))
        pairs += position + 1 - first
    shape = replace(SHAPE, layers=(replace(LAYER, window_tokens=window),))
    one = np.array([0])
    passes = Passes(
        pass_id=one, replica=one,
            phase=np.array(["prefill"]), started_ns=one, launched_ns=one, duration_s=np.array([1.0]),
        num_requests=one + 1, scheduled_tokens=one + q, logits_tokens=one, padded_tokens=one, query=one + q,
        context=one + before + q, row=one,
    )  # fmt: skip
    routing: Any = view(a_run(passes=(PREFILL,), routing=(routed(0, (1, 1, 0, 0)),))).routing
    found = pass_work(shape, HELD, passes, routing)
    assert found.kv_bytes[0] == len(seen) * 4 * 2
    assert found.flops["float32"][0] == pytest.approx(2 * q * 200 + pairs * 8)


def test_latents_expanded_in_every_pass_by_hand() -> None:
    """9 FLOPs and 7 elements for each of the 8 + 3 keys that a decode of two requests finds cached, its own too."""
    decode = one_pass(0, Phase.DECODE, 0, 1, (1, 1), (8, 3))
    routing = (routed(0, (2, 2, 0, 0)),)
    expanding = replace(LAYER, mixer="mla", expanded_flops_per_key=9, expanded_elements_per_key=7)
    plain, found = (work((decode,), routing, replace(SHAPE, layers=(one,))) for one in (LAYER, expanding))
    assert found.flops["float32"][0] - plain.flops["float32"][0] == 11 * 9
    assert found.physical_bytes[0] - plain.physical_bytes[0] == 11 * 7 * 4
    assert found.kv_bytes[0] == plain.kv_bytes[0]
