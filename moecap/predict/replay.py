"""What each rank would have got of recorded routing: assignments, active experts, and copies of tokens.

A token lives on one rank (its source): tokens of a pass are spread over the ranks in equal blocks, in the order in
which they were recorded. It is copied once to every rank that holds an expert it chose, however many of them it holds.
Of an expert with several slots, the choices of a pass go to them in turn, in the order of the tokens.

Assignments and active experts follow from counts exactly. Copies follow from the tokens' experts exactly; from counts
alone they have bounds (derived at `copies_from_counts`) and an estimate inside. Nothing here knows bytes or time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moecap.predict.placement import Placement, Topology
from moecap.predict.routing import Bools, Floats, Ints

Numbers = NDArray[Any]


class Range(NamedTuple):
    """A quantity with what it is at least and at most; all three the same where it is exact."""

    low: Numbers
    value: Numbers
    high: Numbers


def exactly(values: Numbers) -> Range:
    """Known without doubt."""
    return Range(values, values, values)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLoads:
    """Of one layer, [passes, ranks]."""

    assignments: Ints
    """(token, expert) pairs that the rank computes."""
    active_experts: Ints
    """Slots that got a token: experts whose weights the rank reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """Tokens that each rank gets, [passes, ranks], each token once, by where it comes from."""

    local: Range
    """From itself: nothing is sent."""
    in_node: Range
    """From other ranks of its node."""
    between_nodes: Range
    sent_in_node: Ints | None = None
    """The same copies by the rank that sends them; None where only counts are known."""
    sent_between_nodes: Ints | None = None


def slot_counts(counts: Ints, placement: Placement) -> Ints:
    """[passes, experts] -> [passes, slots]: of c choices, slot i of r gets those numbered i, i + r, i + 2r ..."""
    if placement.num_experts == len(placement.expert_of_slot):
        return counts
    replicas = placement.replicas[placement.expert_of_slot]
    turn = np.arange(len(replicas)) - placement.first_slot[placement.expert_of_slot]
    found: Ints = (counts[:, placement.expert_of_slot].astype(np.int64) + replicas - 1 - turn) // replicas
    return found


def rank_loads(counts: Ints, placement: Placement) -> RankLoads:
    """What every rank computes, from counts [passes, experts] of one layer."""
    slots = slot_counts(counts, placement)
    # Sums of whole numbers below 2^24 are exact in float32, and matrix products are the fastest way to add them up.
    dtype = np.float32 if slots.size == 0 or slots.sum(axis=1, dtype=np.int64).max() < 2**24 else np.float64
    on_rank = np.zeros((slots.shape[1], placement.num_ranks), dtype=dtype)
    on_rank[np.arange(slots.shape[1]), placement.rank_of_slot] = 1
    return RankLoads(
        assignments=(slots.astype(dtype) @ on_rank).astype(np.int64),
        active_experts=((slots > 0).astype(dtype) @ on_rank).astype(np.int64),
    )


def tokens_of_rank(tokens: Ints, num_ranks: int) -> Ints:
    """[passes] -> [passes, ranks]: tokens whose source the rank is; token t of T lives on rank floor(t x ranks / T)."""
    edges = -(-np.arange(num_ranks + 1) * tokens[:, None] // num_ranks)
    return np.diff(edges, axis=1)


def source_ranks(tokens: Ints, num_ranks: int) -> Ints:
    """[passes] -> [tokens of all passes]: the rank that each lives on."""
    starts = np.repeat(np.cumsum(tokens) - tokens, tokens)
    of_pass = np.repeat(tokens, tokens)
    found: Ints = (np.arange(len(starts)) - starts) * num_ranks // np.maximum(1, of_pass)
    return found


def chosen_ranks(ids: Ints, tokens: Ints, placement: Placement) -> Ints:
    """[all tokens, top_k] ids of one layer -> the ranks that hold the chosen slots; -1: a choice without weights."""
    known = ids < placement.num_experts
    experts = np.where(known, ids, 0)
    slots = placement.first_slot[experts]
    if len(placement.expert_of_slot) > placement.num_experts:
        slots = slots + np.where(known, _turns(ids, tokens, placement), 0)
    found: Ints = np.where(known, placement.rank_of_slot[slots], -1)
    return found


def _turns(ids: Ints, tokens: Ints, placement: Placement) -> Ints:
    """Which of an expert's slots each choice goes to: its number among the pass's choices of that expert, modulo."""
    row = np.repeat(np.arange(len(tokens)), tokens)
    choices = int(max(ids.max(initial=0) + 1, placement.num_experts))
    key = (row[:, None] * choices + ids).ravel()
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    number = np.arange(len(key)) - np.repeat(begins, np.diff(begins, append=len(key)))
    turns = np.empty_like(number)
    turns[order] = number
    replicas = placement.replicas[np.minimum(ids, placement.num_experts - 1)]
    found: Ints = turns.reshape(ids.shape) % replicas
    return found


def copies_from_ids(ids: Ints, tokens: Ints, placement: Placement, where: Topology) -> Copies:
    """Exact, from the experts of every token of one layer, [all tokens, top_k], pass after pass."""
    ranks = np.sort(chosen_ranks(ids, tokens, placement), axis=1)
    first = np.diff(ranks, axis=1, prepend=-1) > 0  # every distinct rank once; -1 never
    source = np.broadcast_to(source_ranks(tokens, where.num_ranks)[:, None], ranks.shape)[first]
    row = np.broadcast_to(np.repeat(np.arange(len(tokens)), tokens)[:, None], ranks.shape)[first]
    target = ranks[first]
    same_node = where.node_of_rank[source] == where.node_of_rank[target]
    shape = (len(tokens), where.num_ranks)

    def count(which: Bools, ends: Ints) -> Ints:
        keys = row[which] * where.num_ranks + ends[which]
        return np.bincount(keys, minlength=shape[0] * shape[1]).reshape(shape)

    in_node, between = same_node & (source != target), ~same_node
    return Copies(
        local=exactly(count(source == target, target)), in_node=exactly(count(in_node, target)),
        between_nodes=exactly(count(between, target)), sent_in_node=count(in_node, source),
        sent_between_nodes=count(between, source),
    )  # fmt: skip


def copies_from_counts(counts: Ints, tokens: Ints, top_k: int, placement: Placement, where: Topology) -> Copies:
    """Bounds and an estimate, from counts [passes, experts] of one layer.

    Let rank r have slots with counts c_s, together a, of a pass with T tokens of k choices each. The u tokens that
    choose any of them satisfy

        max(max_s c_s, ceil(a / k)) <= u <= min(T, a):

    the choices of one slot are of different tokens, a token makes at most k of the a choices, and each token counts at
    most once. Single ranks can reach both. Of u, those among the n tokens that live in one place (the rank itself, the
    rest of its node, the other nodes) are between max(0, u_low - (T - n)) and min(n, u_high). The estimate takes
    `_hit_share` of the tokens of every place, held within these.
    """
    slots = slot_counts(counts, placement)[:, (order := np.argsort(placement.rank_of_slot, kind="stable"))]
    starts = np.searchsorted(placement.rank_of_slot[order], np.arange(placement.num_ranks))
    assigned = rank_loads(counts, placement).assignments
    all_tokens = tokens[:, None]
    low = np.maximum(np.maximum.reduceat(slots, starts, axis=1), -(-assigned // top_k))
    high = np.minimum(all_tokens, assigned)
    share = _hit_share(slots, starts, assigned, tokens, top_k)

    def of(living: Ints) -> Range:
        least, most = np.maximum(0, low - (all_tokens - living)), np.minimum(living, high)
        return Range(least, np.clip(share * living, least, most), most)

    own = tokens_of_rank(tokens, where.num_ranks)
    node = own.reshape(len(tokens), where.num_nodes, -1).sum(axis=2)[:, where.node_of_rank]
    return Copies(local=of(own), in_node=of(node - own), between_nodes=of(all_tokens - node))


def _hit_share(slots: Ints, starts: Ints, assigned: Ints, tokens: Ints, top_k: int) -> Floats:
    """[passes, ranks]: share of the tokens that choose a rank, if tokens were independent of each other and each drew
    its k slots one by one, without repetition, with probabilities as the counts.

    With q the rank's share of all choices, a token misses the rank at draw j with (1 - q - jm) / (1 - jm), where each
    of the j slots that were drawn before, all of other ranks, took away m, the mean share of such a slot: the sum of
    squared shares over the sum of shares. Exact for equal counts.
    """
    total = np.maximum(1, tokens * top_k).astype(np.float32)[:, None]  # an estimate needs no more digits
    shares = slots.astype(np.float32) / total
    inside = assigned / total
    on_rank = np.add.reduceat(np.square(shares), starts, axis=1)
    rest = np.maximum(0.0, on_rank.sum(axis=1, keepdims=True) - on_rank)
    outside = inside.sum(axis=1, keepdims=True) - inside
    mean = np.divide(rest, outside, out=np.zeros_like(rest), where=outside > 0)
    missed = np.ones_like(inside)
    for draw in range(top_k):
        left = 1.0 - draw * mean
        missed *= np.clip(np.divide(left - inside, left, out=np.zeros_like(left), where=left > 0), 0.0, 1.0)
    found: Floats = 1.0 - missed
    return found
