"""Where experts are put, by hand and against all other ways to put a few."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.errors import ConfigError
from moecap.predict.placement import Placement, balanced, linear, place, round_robin, topology

LOADS = st.lists(st.integers(0, 50), min_size=1, max_size=14)


def carried(placement: Placement, load: list[int]) -> list[float]:
    """What each rank gets if an expert's slots share its load."""
    replicas = placement.replicas
    found = [0.0] * placement.num_ranks
    for expert, rank in zip(placement.expert_of_slot.tolist(), placement.rank_of_slot.tolist(), strict=True):
        found[rank] += load[expert] / replicas[expert]
    return found


def test_linear_and_round_robin_by_hand() -> None:
    assert linear(8, 4).rank_of_slot.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert linear(7, 3).rank_of_slot.tolist() == [0, 0, 0, 1, 1, 2, 2], "the first rank holds one more"
    assert round_robin(7, 3).rank_of_slot.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_balanced_puts_the_heavy_apart() -> None:
    placement = balanced(np.array([9.0, 8.0, 1.0, 2.0]), 2)
    assert sorted(carried(placement, [9, 8, 1, 2])) == [10, 10]


def test_a_swap_repairs_what_longest_first_gets_wrong() -> None:
    """Longest first, at most 3 a rank, gives 9 + 5 + 2 = 16 and 7 + 6 + 5 = 18; 6 for 5 makes both 17."""
    load = [9, 7, 6, 5, 5, 2]
    assert carried(balanced(np.array(load, dtype=float), 2), load) == [17, 17]


def test_redundant_slots_go_to_what_carries_most() -> None:
    load = [100.0, 60.0, 10.0, 10.0]
    # 100 -> 50 + 50; then 60 carries most -> 30 + 30; then 50s -> three of 33.3
    assert balanced(np.array(load), 4, 1).replicas.tolist() == [2, 1, 1, 1]
    assert balanced(np.array(load), 4, 2).replicas.tolist() == [2, 2, 1, 1]
    assert balanced(np.array(load), 4, 3).replicas.tolist() == [3, 2, 1, 1]


@settings(max_examples=200, deadline=None)
@given(LOADS, st.integers(1, 8), st.integers(0, 20))
def test_every_expert_has_a_slot_no_rank_one_twice_and_ranks_are_even(load: list[int], ranks: int, extra: int) -> None:
    extra = min(extra, len(load) * (ranks - 1))
    if len(load) + extra < ranks:
        with pytest.raises(ConfigError, match="leave ranks without one"):
            balanced(np.array(load, dtype=float), ranks, extra)
        return
    placement = balanced(np.array(load, dtype=float), ranks, extra)
    pairs = list(zip(placement.expert_of_slot.tolist(), placement.rank_of_slot.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) == len(load) + extra
    assert {expert for expert, _ in pairs} == set(range(len(load)))
    sizes = [sum(rank == one for _, rank in pairs) for one in range(ranks)]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=6))
def test_balanced_on_two_ranks_is_near_the_best_of_all(load: list[int]) -> None:
    """Against every way to split the experts evenly; 4/3 is Graham's bound for longest first."""
    half = -(-len(load) // 2)
    best = min(max(sum(one[:half]), sum(one[half:])) for one in permutations(load))
    assert max(carried(balanced(np.array(load, dtype=float), 2), load)) <= best * 4 / 3 + 1e-9


def test_what_cannot_be_placed_says_why() -> None:
    with pytest.raises(ConfigError, match="at most 3"):
        linear(3, 4)
    with pytest.raises(ConfigError, match="balanced, which chooses them by load"):
        place("linear", np.ones(4), 2, 1)
    with pytest.raises(ConfigError, match=r"twice.*at most 4"):
        balanced(np.ones(4), 2, 5)
    with pytest.raises(ConfigError, match="divides 6"):
        topology(6, 4)
    assert topology(6, 2).node_of_rank.tolist() == [0, 0, 0, 1, 1, 1]
