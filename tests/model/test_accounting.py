"""Expectations and attention FLOPs against enumeration and brute force."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(before=st.integers(0, 40), queries=st.integers(1, 40), window=st.none() | st.integers(1, 50))
def test_causal_pairs_equal_counting(before: int, queries: int, window: int | None) -> None:
    context = before + queries
    counted = sum(min(position + 1, window or context) for position in range(before, context))
    assert accounting.causal_pairs(queries, context, window) == counted


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


def test_bytes_of_mixed_widths_by_hand() -> None:
    """Mixtral 8x7B with 4-bit experts and 2-byte rest, two experts per layer: 32 x 2 x 176,160,768 experts' weights at
    half a byte, attention 1,342,177,280, routers 1,048,576, norms 266,240 and a head of 131,072,000 at two."""
    shape = shape_of("mistralai/Mixtral-8x7B-v0.1")
    widths = {**dict.fromkeys(accounting.params_by_class(shape), 2.0), "routed_expert": 0.5}
    found = accounting.activated_weight_bytes(shape, widths, lambda layer: layer.top_k)  # type: ignore[arg-type]
    assert found == 32 * 2 * 176_160_768 * 0.5 + 2 * (1_342_177_280 + 1_048_576 + 266_240 + 131_072_000)
    assert accounting.activated_weight_bytes(shape, widths, accounting.uniform(1)) == pytest.approx(found)  # type: ignore[arg-type]
