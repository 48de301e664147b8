"""Replay against a plain loop over tokens that shares no code with it, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moecap.predict.placement import Placement, Topology, balanced, linear, round_robin, topology
from moecap.predict.replay import copies_from_counts, copies_from_ids, rank_loads, tokens_of_rank
from moecap.predict.routing import Routing, counted
from moecap.predict.synthetic import synthetic_routing
from moecap.predict.traffic import all_gather_reduce_scatter, all_reduce, all_to_all, row_bytes


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[list[list[int]]], int, int, Placement, Topology]:
    """Passes of tokens of distinct experts, experts, top-k, a placement and where its ranks are."""
    experts = draw(st.integers(2, 9))
    top_k = draw(st.integers(1, min(4, experts)))
    token = st.permutations(range(experts)).map(lambda order: list(order[:top_k]))
    passes = draw(st.lists(st.lists(token, max_size=9), min_size=1, max_size=3))
    nodes = draw(st.integers(1, 3))
    devices = draw(st.integers(1, max(1, experts // nodes)))
    ranks = nodes * devices
    kind = draw(st.sampled_from(["linear", "round-robin", "balanced"])) if ranks <= experts else "balanced"
    extra = draw(st.integers(max(0, ranks - experts), experts * (ranks - 1))) if kind == "balanced" else 0
    load = np.array(draw(st.lists(st.integers(0, 9), min_size=experts, max_size=experts)), dtype=float)
    placed = {"linear": lambda: linear(experts, ranks), "round-robin": lambda: round_robin(experts, ranks),
              "balanced": lambda: balanced(load, ranks, extra)}[kind]()  # fmt: skip
    return passes, experts, top_k, placed, topology(ranks, nodes)


def as_routing(passes: list[list[list[int]]], experts: int, top_k: int) -> Routing:
    flat = [token for one in passes for token in one]
    ids = np.array(flat, dtype=np.int64).reshape(len(flat), 1, top_k)
    return counted((0,), np.array([len(one) for one in passes]), ids, experts)


def enumerate_pass(tokens: list[list[int]], placement: Placement, where: Topology) -> dict[str, dict[int, int]]:
    """Token by token: who computes, who copies what to whom."""
    homes: dict[int, list[int]] = {}
    for expert, rank in zip(placement.expert_of_slot.tolist(), placement.rank_of_slot.tolist(), strict=True):
        homes.setdefault(expert, []).append(rank)
    asked: dict[int, int] = {}
    computed: dict[tuple[int, int], int] = {}
    found: dict[str, dict[int, int]] = {name: {} for name in ("assigned", "own", "in", "out", "sent in", "sent out")}

    def add(name: str, rank: int) -> None:
        found[name][rank] = found[name].get(rank, 0) + 1

    for at, experts in enumerate(tokens):
        source = next(r for r in range(where.num_ranks) if at * where.num_ranks < (r + 1) * len(tokens))
        targets = set()
        for expert in experts:
            turn = asked.get(expert, 0)
            asked[expert] = turn + 1
            rank = homes[expert][turn % len(homes[expert])]
            add("assigned", rank)
            computed[rank, expert] = computed.get((rank, expert), 0) + 1
            targets.add(rank)
        for rank in targets:
            near = rank // where.devices_per_node == source // where.devices_per_node
            add("own" if rank == source else "in" if near else "out", rank)
            if rank != source:
                add("sent in" if near else "sent out", source)
    found["active"] = {}
    for rank, _ in computed:
        add("active", rank)
    return found


def rows(found: list[dict[str, dict[int, int]]], name: str, ranks: int) -> list[list[int]]:
    return [[one[name].get(rank, 0) for rank in range(ranks)] for one in found]


@settings(max_examples=300, deadline=None)
@given(cases())
def test_tokens_copies_and_bytes_equal_a_loop_over_tokens(case: tuple) -> None:  # type: ignore[type-arg]
    passes, experts, top_k, placement, where = case
    routing = as_routing(passes, experts, top_k)
    wanted = [enumerate_pass(one, placement, where) for one in passes]
    loads = rank_loads(routing.counts[:, 0], placement)
    assert loads.assignments.tolist() == rows(wanted, "assigned", where.num_ranks)
    assert loads.active_experts.tolist() == rows(wanted, "active", where.num_ranks)
    assert routing.token_experts is not None
    copies = copies_from_ids(routing.token_experts[:, 0], routing.tokens, placement, where)
    assert copies.local.value.tolist() == rows(wanted, "own", where.num_ranks)
    assert copies.in_node.value.tolist() == rows(wanted, "in", where.num_ranks)
    assert copies.between_nodes.value.tolist() == rows(wanted, "out", where.num_ranks)
    assert copies.sent_in_node is not None and copies.sent_between_nodes is not None
    assert copies.sent_in_node.tolist() == rows(wanted, "sent in", where.num_ranks)
    assert copies.sent_between_nodes.tolist() == rows(wanted, "sent out", where.num_ranks)
    moved = all_to_all(copies, row_bytes(10, 1.5, 2.0))
    for way, name, size in (
        (moved.dispatch_in_node, "in", 15), (moved.dispatch_between_nodes, "out", 15),
        (moved.combine_in_node, "in", 20), (moved.combine_between_nodes, "out", 20),
    ):  # fmt: skip
        assert way.value.tolist() == [[size * copy for copy in row] for row in rows(wanted, name, where.num_ranks)]


@settings(max_examples=300, deadline=None)
@given(cases())
def test_bounds_from_counts_enclose_what_really_was(case: tuple) -> None:  # type: ignore[type-arg]
    passes, experts, top_k, placement, where = case
    routing = as_routing(passes, experts, top_k)
    assert routing.token_experts is not None
    exact = copies_from_ids(routing.token_experts[:, 0], routing.tokens, placement, where)
    known = copies_from_counts(routing.counts[:, 0], routing.tokens, top_k, placement, where)
    for name in ("local", "in_node", "between_nodes"):
        low, value, high = getattr(known, name)
        real = getattr(exact, name).value
        assert (low <= real).all() and (real <= high).all(), name
        assert (low <= value).all() and (value <= high).all(), name


def test_bounds_can_be_reached() -> None:
    """Two tokens, top-2 of 4 experts on two ranks, every expert once: {01, 23} makes 2 copies, {02, 13} makes 4."""
    where, placement = topology(2, 1), linear(4, 2)
    together, apart = as_routing([[[0, 1], [2, 3]]], 4, 2), as_routing([[[0, 2], [1, 3]]], 4, 2)
    assert together.counts.tolist() == apart.counts.tolist()
    known = copies_from_counts(together.counts[:, 0], together.tokens, 2, placement, where)
    copies = [
        sum(int(way.value.sum()) for way in (exact.local, exact.in_node))
        for one in (together, apart)
        if one.token_experts is not None
        for exact in [copies_from_ids(one.token_experts[:, 0], one.tokens, placement, where)]
    ]
    assert copies == [2, 4]
    # Of each rank's 1 to 2 copies, 0 to 1 is of its own token and 0 to 1 of the other's.
    assert known.local.low.tolist() == known.in_node.low.tolist() == [[0, 0]]
    assert known.local.high.tolist() == known.in_node.high.tolist() == [[1, 1]]


def test_the_estimate_is_exact_on_average_under_uniform_routing() -> None:
    """Of 8 experts in two halves, top-2 misses a half with 4/8 x 3/7; over all 28 pairs as tokens, so it comes out."""
    pairs = [[a, b] for a in range(8) for b in range(a)]
    routing = as_routing([pairs], 8, 2)
    known = copies_from_counts(routing.counts[:, 0], routing.tokens, 2, linear(8, 2), topology(2, 1))
    hits = sum(any(expert < 4 for expert in pair) for pair in pairs)
    assert hits == 28 - 6
    assert known.local.value[0, 0] + known.in_node.value[0, 0] == pytest.approx(hits, rel=1e-6)


def test_the_estimate_is_close_under_skew() -> None:
    routing = synthetic_routing(
        layers=(0,), num_experts=64, top_k=6, tokens=np.full(60, 128), exponent=0.8, seed=1
    )  # fmt: skip
    assert routing.token_experts is not None
    for placement, where in ((linear(64, 8), topology(8, 2)), (balanced(routing.load()[0], 16, 16), topology(16, 4))):
        exact = copies_from_ids(routing.token_experts[:, 0], routing.tokens, placement, where)
        known = copies_from_counts(routing.counts[:, 0], routing.tokens, 6, placement, where)
        for name in ("in_node", "between_nodes"):
            assert getattr(known, name).value.sum() == pytest.approx(getattr(exact, name).value.sum(), rel=0.03)


def test_choices_without_weights_go_nowhere() -> None:
    """Experts 0 and 1 on ranks 0 and 1; id 2 holds no weights. Token 0 lives on rank 0, token 1 on rank 1."""
    routing = counted((0,), np.array([2]), np.array([[[0, 2]], [[0, 1]]]), 2)
    assert routing.counts.tolist() == [[[2, 1]]]
    assert routing.token_experts is not None
    copies = copies_from_ids(routing.token_experts[:, 0], routing.tokens, linear(2, 2), topology(2, 1))
    assert copies.local.value.tolist() == [[1, 1]] and copies.in_node.value.tolist() == [[1, 0]]


def test_tokens_are_spread_in_blocks() -> None:
    assert tokens_of_rank(np.array([7, 2, 0]), 3).tolist() == [[3, 2, 2], [1, 1, 0], [0, 0, 0]]


def test_rings_by_hand() -> None:
    """8 tokens on two nodes of two, rows of 10 bytes out and 20 back: a rank lacks 6 tokens; ranks 0 and 2 get them
    from the other node. All-reduce moves 2 x 3/4 x 8 rows."""
    where, row = topology(4, 2), row_bytes(10, 1.0, 2.0)
    gathered = all_gather_reduce_scatter(np.array([8]), where, row)
    assert gathered.dispatch_between_nodes.value.tolist() == [[60, 0, 60, 0]]
    assert gathered.dispatch_in_node.value.tolist() == [[0, 60, 0, 60]]
    assert gathered.combine_between_nodes.value.tolist() == [[120, 0, 120, 0]]
    reduced = all_reduce(np.array([8]), where, row)
    assert reduced.dispatch_in_node.value.sum() == reduced.dispatch_between_nodes.value.sum() == 0
    assert reduced.combine_between_nodes.value.tolist() == [[240, 0, 240, 0]]
    assert reduced.combine_in_node.value.tolist() == [[0, 240, 0, 240]]
    assert all_reduce(np.array([8]), topology(4, 1), row).combine_between_nodes.value.sum() == 0


def test_routing_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="more tokens than its pass has"):
        Routing(layers=(0,), top_k=1, tokens=np.array([1]), counts=np.array([[[2, 0]]]))
