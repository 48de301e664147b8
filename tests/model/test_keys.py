"""Counts of keys against plain enumeration of every query and what it attends to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moecap.model.keys import Keys, key_sets
from moecap.records import LayerShape

QUERIES = st.integers(1, 30)
BEFORE = st.integers(0, 60)


def visible(position: int, tokens_per_key: int) -> list[int]:
    """Keys whose last token is not after the query's own."""
    return [key for key in range(position + 1) if (key + 1) * tokens_per_key - 1 <= position]


@given(before=BEFORE, queries=QUERIES, tokens_per_key=st.integers(1, 9))
def test_all_keys(before: int, queries: int, tokens_per_key: int) -> None:
    keys = Keys(tokens_per_key=tokens_per_key)
    attended = [visible(position, tokens_per_key) for position in range(before, before + queries)]
    already = visible(before - 1, tokens_per_key) if before else []
    assert keys.pairs(queries, before + queries) == sum(map(len, attended))
    assert keys.read(queries, before + queries) == keys.kept(before + queries) == len(attended[-1])
    assert keys.added(queries, before + queries) == len(set(attended[-1]) - set(already))


@given(before=BEFORE, queries=QUERIES, window=st.integers(1, 50))
def test_a_window(before: int, queries: int, window: int) -> None:
    keys = Keys(window=window)
    attended = [visible(position, 1)[-window:] for position in range(before, before + queries)]
    assert keys.pairs(queries, before + queries) == sum(map(len, attended))
    assert keys.read(queries, before + queries) == len(set().union(*attended))
    assert keys.kept(before + queries) == len(attended[-1])


@given(before=BEFORE, queries=QUERIES, most=st.integers(1, 20), tokens_per_key=st.integers(1, 5))
def test_a_selection(before: int, queries: int, most: int, tokens_per_key: int) -> None:
    """Selections that overlap as little as they can: what no query has chosen yet comes first."""
    keys = Keys(tokens_per_key=tokens_per_key, selected_max=most)
    chosen: set[int] = set()
    pairs = 0
    for position in range(before, before + queries):
        by_novelty = sorted(visible(position, tokens_per_key), key=lambda key: key in chosen)
        pairs += len(by_novelty[:most])
        chosen |= set(by_novelty[:most])
    assert keys.pairs(queries, before + queries) == pairs
    assert keys.read(queries, before + queries) == len(chosen)
    assert keys.kept(before + queries) == len(visible(before + queries - 1, tokens_per_key))


@given(before=BEFORE, queries=QUERIES, block=st.integers(1, 6), blocks=st.integers(1, 4))
def test_blocks_with_the_query_s_own(before: int, queries: int, block: int, blocks: int) -> None:
    """As MiniMax-M3 chooses: the block in which the query is, and others that are whole."""
    pairs = 0
    for position in range(before, before + queries):
        own = position // block
        others = range(own)[: blocks - 1]
        pairs += sum(key // block == own or key // block in others for key in visible(position, 1))
    assert Keys(selected_max=blocks * block, block=block).pairs(queries, before + queries) == pairs


@given(before=BEFORE, queries=QUERIES, pool=st.integers(1, 6), pools=st.integers(1, 4))
def test_pools_and_what_comes_after_them(before: int, queries: int, pool: int, pools: int) -> None:
    """As GLM-5.3-Flash chooses: whole pools, and the tokens after the last whole one."""
    pairs = 0
    for position in range(before, before + queries):
        whole = (position + 1) // pool
        pairs += sum(key // pool in range(whole)[:pools] or key // pool == whole for key in visible(position, 1))
    assert Keys(selected_max=(pools + 1) * pool - 1, block=pool).pairs(queries, before + queries) == pairs


def test_arrays_are_counted_as_numbers_are() -> None:
    query, context = np.array([1, 5, 3]), np.array([9, 5, 40])
    for keys in (Keys(tokens_per_key=4), Keys(window=6), Keys(selected_max=6, block=3)):
        numbers = list(zip(query.tolist(), context.tolist(), strict=True))
        assert keys.pairs(query, context).tolist() == [keys.pairs(q, c) for q, c in numbers]
        assert keys.read(query, context).tolist() == [keys.read(q, c) for q, c in numbers]


PLAIN = {"index": 0, "mixer": "full_attention", "mixer_params": 0, "mixer_matmul_params": 0,
         "score_flops_per_pair": 8, "kv_elements_per_token": 4, "window_tokens": None}  # fmt: skip


def layer(**changes: object) -> LayerShape:
    return LayerShape(**{**PLAIN, **changes})  # type: ignore[arg-type]


def test_layers_that_count_alike_are_one_set() -> None:
    """Two full layers, a window, a linear mixer, and two with indexers of their own size."""
    linear = layer(mixer="linear", score_flops_per_pair=0, kv_elements_per_token=0, state_elements=9)
    chosen = [
        layer(selected_max=5, index_elements_per_key=elements, index_flops_per_pair=2 * elements) for elements in (2, 3)
    ]
    found = key_sets([layer(), layer(window_tokens=7), linear, layer(), *chosen])
    assert [(one.keys, one.is_index, one.elements, one.flops_per_pair) for one in found] == [
        (Keys(), False, 8, 16), (Keys(window=7), False, 4, 8), (Keys(selected_max=5), False, 8, 16),
        (Keys(), True, 5, 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_tokens": 0}, "at least 1"),
        ({"selected_max": 0}, "at least 1"),
        ({"tokens_per_index_key": 0}, "at least 1"),
        ({"tokens_per_entry": 4}, "have a size"),
        ({"elements_per_entry": 4}, "have a size"),
        ({"window_tokens": 4, "selected_max": 2}, "not by both"),
    ],
)
def test_impossible_layers_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer(**changes)
