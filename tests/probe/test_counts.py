"""Counts and invariants, worked out by hand."""

import numpy as np
import pytest

from moecap.probe.counts import LayerCounts, broken_invariant, layer_counts

# four rows, top-2 of five experts; the second row is padding
IDS = np.array([[0, 3], [4, 1], [3, 0], [3, 2]])
REAL = np.array([True, False, True, True])


def test_padding_is_left_out_of_counts_and_kept_in_what_kernels_read() -> None:
    assert layer_counts(IDS, REAL, 5) == LayerCounts(counts=(2, 0, 1, 3, 0), distinct=3, distinct_physical=5)


def test_identity_experts_are_choices_without_weights() -> None:
    found = layer_counts(IDS, np.ones(4, dtype=bool), 3, num_choices=5)  # 3 and 4 are identity experts
    assert found == LayerCounts(counts=(2, 1, 1, 3, 1), distinct=3, distinct_physical=3)


def test_no_rows_count_nothing() -> None:
    empty = layer_counts(np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=bool), 3)
    assert empty == LayerCounts(counts=(0, 0, 0), distinct=0, distinct_physical=0)


@pytest.mark.parametrize("wrong", [5, -1])
def test_an_id_that_no_expert_has_is_an_error(wrong: int) -> None:
    with pytest.raises(ValueError, match="outside 0 to 4"):
        layer_counts(np.array([[0, wrong]]), np.array([True]), 5)


@pytest.mark.parametrize(
    ("counts", "distinct", "tokens", "top_k", "num_experts", "why"),
    [
        ((2, 0, 1, 3, 0), 3, 3, 2, 5, None),
        ((0, 0), 0, 0, 1, 2, None),
        ((2, 0, 1, 3, 0), 3, 4, 2, 5, "6 assignments were counted, 4 tokens x top-2 make 8"),
        ((6, 0, 0), 1, 3, 2, 3, "1 distinct experts fired, 2 to 3 are possible"),  # a token's two choices differ
        ((1, 1, 0), 3, 1, 2, 3, "3 distinct experts fired, 2 to 2 are possible"),
        ((0, 0, 2), 0, 1, 2, 2, None),  # both choices of the token were the identity expert
    ],
)
def test_invariants(
    counts: tuple[int, ...], distinct: int, tokens: int, top_k: int, num_experts: int, why: str | None
) -> None:
    found = broken_invariant(sum(counts), distinct, tokens, top_k, num_experts, num_choices=len(counts))
    assert found == why
