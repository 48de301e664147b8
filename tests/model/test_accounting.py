"""Expectations and attention FLOPs against enumeration and brute force."""

from itertools import combinations, product

import pytest

from moecap.model import accounting
from moecap.model.cards import find_card
from moecap.records import ModelShape


def test_skewed_expectation_by_enumeration() -> None:
    """Three experts, top-1, two tokens, shares 1/2, 1/3, 1/6: sum over the nine outcomes."""
    shares = (1 / 2, 1 / 3, 1 / 6)
    expected = sum(shares[a] * shares[b] * len({a, b}) for a, b in product(range(3), repeat=2))
    assert accounting.expected_distinct_under_skew(shares, 1, 2) == pytest.approx(expected)


def test_no_skew_is_uniform_and_any_skew_hits_fewer() -> None:
    """Top-2 of 4 with equal shares chooses each expert half of the time, as every pair equally often does."""
    pairs = list(combinations(range(4), 2))
    assert sum(0 in pair for pair in pairs) / len(pairs) == 0.5
    for tokens in (1, 3, 10):
        uniform = accounting.expected_distinct_experts(4, 2, tokens)
        assert accounting.expected_distinct_under_skew([0.25] * 4, 2, tokens) == pytest.approx(uniform)
        assert accounting.expected_distinct_under_skew([0.4, 0.3, 0.2, 0.1], 2, tokens) <= uniform + 1e-12


@pytest.mark.parametrize("shares", [[0.6, 0.2, 0.2], [0.5, 0.4, 0.2], [-0.1, 0.5, 0.6]])
def test_impossible_shares_are_refused(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        accounting.expected_distinct_under_skew(shares, 2, 4)


def shape_of(model: str) -> ModelShape:
    card = find_card(model)
    assert card is not None
    return card.shape


def test_attention_flops_by_hand() -> None:
    """Qwen3-30B-A3B: 32 heads of 128, keys and values, 2 FLOPs: 16,384 a pair and layer, 48 layers. gpt-oss-20b: 64
    heads of 64, also 16,384; 12 of its 24 layers see 128 tokens at most."""
    qwen, gpt = shape_of("Qwen/Qwen3-30B-A3B"), shape_of("openai/gpt-oss-20b")
    assert accounting.attention_flops(qwen, 1, 1000) == 48 * 16_384 * 1000
    assert accounting.attention_flops(qwen, 100, 100) == 48 * 16_384 * 5050
    assert accounting.attention_flops(gpt, 1, 1000) == 12 * 16_384 * 1000 + 12 * 16_384 * 128


def test_deepseek_v32_by_hand() -> None:
    """61 layers. Latent 512 and rope 64, 128 heads: 2 x 128 x (576 + 512) = 278,528 a pair, of at most 2,048 keys. The
    indexer: 64 heads of 128 and their weights, 2 x 64 x 129 = 16,512 a pair, of all; a key of 128 a token."""
    shape = shape_of("deepseek-ai/DeepSeek-V3.2")
    assert accounting.attention_flops(shape, 1, 1000) == 61 * (278_528 + 16_512) * 1000
    assert accounting.attention_flops(shape, 1, 100_000) == 61 * (278_528 * 2048 + 16_512 * 100_000)
    # a prefill of 3,000: 2,048 queries attend to all before them, 952 to 2,048 keys
    pairs, scored = 2048 * 2049 // 2 + 952 * 2048, 3000 * 3001 // 2
    assert accounting.attention_flops(shape, 3000, 3000) == 61 * (278_528 * pairs + 16_512 * scored)
    assert accounting.kv_bytes_per_token(shape, 2) == 61 * 576 * 2 == 70_272
    assert accounting.index_bytes_per_token(shape, 2) == 61 * 128 * 2 == 15_616
    assert accounting.kv_bytes_at_context(shape, 100_000, 2) == 70_272 * 100_000
    assert accounting.index_bytes_at_context(shape, 100_000, 2) == 15_616 * 100_000


def test_a_shared_choice_costs_no_scores() -> None:
    """GLM-5.2: 78 layers, 64 heads: 139,264 a pair; 21 have an indexer, of 32 heads: 8,256. GLM-5: all 78."""
    shared, own = shape_of("zai-org/GLM-5.2"), shape_of("zai-org/GLM-5")
    assert accounting.attention_flops(shared, 1, 50_000) == 78 * 139_264 * 2048 + 21 * 8_256 * 50_000
    assert accounting.attention_flops(own, 1, 50_000) == 78 * 139_264 * 2048 + 78 * 8_256 * 50_000
    assert accounting.index_bytes_per_token(shared, 1) == 21 * 128


def test_minimax_m3_by_hand() -> None:
    """60 layers, 64 heads of 128: 32,768 a pair; the last 57 attend to 16 blocks of 128. Token 100,000 is the 32nd of
    its block: 15 whole blocks and these. The indexer's 4 heads of 128, of all tokens: 1,024 a pair."""
    shape = shape_of("MiniMaxAI/MiniMax-M3")
    attended = 15 * 128 + 32
    assert accounting.attention_flops(shape, 1, 100_000) == 32_768 * (3 * 100_000 + 57 * attended) + 57 * 1024 * 100_000
    assert accounting.kv_bytes_per_token(shape, 1) == 60 * 2 * 4 * 128
    assert accounting.index_bytes_per_token(shape, 1) == 57 * 128


def test_deepseek_v4_by_hand() -> None:
    """Flash: 43 layers with a window of 128 over keys of 512 that are the values too, 64 heads: 131,072 a pair. 21 have
    an entry of 512 per 4 tokens, and attend to at most 512 of them by keys of 128 and 64 heads: 16,512 a pair; 20 have
    one per 128 tokens, and attend to all. At 100,001 tokens these are 25,000 and 781."""
    shape = shape_of("deepseek-ai/DeepSeek-V4-Flash")
    assert accounting.attention_flops(shape, 1, 100_001) == (
        131_072 * (43 * 128 + 21 * 512 + 20 * 781) + 21 * 16_512 * 25_000
    )
    assert accounting.kv_bytes_per_token(shape, 2) == 2 * (43 * 512 + 21 * 512 / 4 + 20 * 512 / 128)
    assert accounting.kv_bytes_at_context(shape, 100_001, 2) == 2 * 512 * (43 * 128 + 21 * 25_000 + 20 * 781)
    assert accounting.index_bytes_at_context(shape, 100_001, 2) == 2 * 21 * 128 * 25_000
    # values and gates: of 127 tokens; of 3 tokens, twice as wide, and of the entry before, also for the indexer
    waiting = 20 * 2 * 127 * 512 + 21 * (2 * (3 * 2 + 4) * 512 + 2 * (3 * 2 + 4) * 128)
    assert accounting.state_bytes_per_sequence(shape, 2) == 2 * waiting


def test_bytes_of_mixed_widths_by_hand() -> None:
    """Mixtral 8x7B with 4-bit experts and 2-byte rest, two experts per layer: 32 x 2 x 176,160,768 experts' weights at
    half a byte, attention 1,342,177,280, routers 1,048,576, norms 266,240 and a head of 131,072,000 at two."""
    shape = shape_of("mistralai/Mixtral-8x7B-v0.1")
    widths = {**dict.fromkeys(accounting.params_by_class(shape), 2.0), "routed_expert": 0.5}
    found = accounting.activated_weight_bytes(shape, widths, lambda layer: layer.top_k)  # type: ignore[arg-type]
    assert found == 32 * 2 * 176_160_768 * 0.5 + 2 * (1_342_177_280 + 1_048_576 + 266_240 + 131_072_000)
    assert accounting.activated_weight_bytes(shape, widths, accounting.uniform(1)) == pytest.approx(found)  # type: ignore[arg-type]
