"""Bytes that an expert-parallel layer moves between ranks, by how it moves them. No time, no device.

- `all_to_all`: every token is sent once to each rank that holds an expert it chose, and that rank sends one partial sum
  per token back (rank de-duplication; `moecap.predict.replay` counts these copies).
- `all_gather_reduce_scatter`: every rank gets every token, in a ring over the ranks, and its own tokens' sums back.
- `all_reduce`: every rank has every token already (tensor-parallel attention); sums over all ranks in a ring.

Bytes are of the rows of hidden states: a rank's arrays are what it receives in dispatch, and for `all_to_all` what it
sends in combine. Ids, weights, padding and protocol are not in them. In rings, ranks of a node are neighbours, so that
only the first rank of each node receives from another node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moecap.predict.placement import Topology
from moecap.predict.replay import Copies, Numbers, Range, exactly, tokens_of_rank
from moecap.predict.routing import Bools, Floats, Ints

Backend = Literal["all_to_all", "all_gather_reduce_scatter", "all_reduce"]
BACKENDS: tuple[Backend, ...] = ("all_to_all", "all_gather_reduce_scatter", "all_reduce")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBytes:
    """One token's hidden state on the wire."""

    dispatch: float
    combine: float


def row_bytes(
    hidden_size: int, dispatch_bytes_per_element: float = 2.0, combine_bytes_per_element: float = 2.0
) -> RowBytes:
    """Quantised dispatch: 1 byte per element in 8 bits, with float32 scales of blocks of 128 1 + 4/128."""
    return RowBytes(
        dispatch=hidden_size * dispatch_bytes_per_element, combine=hidden_size * combine_bytes_per_element
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Bytes of one layer, [passes, ranks]."""

    dispatch_in_node: Range
    dispatch_between_nodes: Range
    combine_in_node: Range
    combine_between_nodes: Range


def all_to_all(copies: Copies, row: RowBytes) -> Traffic:
    """From the copies of tokens."""
    return Traffic(
        dispatch_in_node=_times(copies.in_node, row.dispatch),
        dispatch_between_nodes=_times(copies.between_nodes, row.dispatch),
        combine_in_node=_times(copies.in_node, row.combine),
        combine_between_nodes=_times(copies.between_nodes, row.combine),
    )


def all_gather_reduce_scatter(tokens: Ints, where: Topology, row: RowBytes) -> Traffic:
    """Whatever the routers do: in a ring, a rank receives all tokens but its own, and in reduce-scatter as many rows as
    the others have tokens."""
    missing = tokens[:, None] - tokens_of_rank(tokens, where.num_ranks)
    entry = _entries(where)
    return Traffic(
        dispatch_in_node=exactly(missing * ~entry * row.dispatch),
        dispatch_between_nodes=exactly(missing * entry * row.dispatch),
        combine_in_node=exactly(missing * ~entry * row.combine),
        combine_between_nodes=exactly(missing * entry * row.combine),
    )


def all_reduce(tokens: Ints, where: Topology, row: RowBytes) -> Traffic:
    """No dispatch; in a ring of n ranks, each receives 2 (n - 1) / n of all rows."""
    received = np.broadcast_to(
        2 * (where.num_ranks - 1) / where.num_ranks * row.combine * tokens[:, None], (len(tokens), where.num_ranks)
    )
    entry, nothing = _entries(where), exactly(np.zeros((len(tokens), where.num_ranks)))
    return Traffic(
        dispatch_in_node=nothing, dispatch_between_nodes=nothing, combine_in_node=exactly(received * ~entry),
        combine_between_nodes=exactly(received * entry),
    )  # fmt: skip


def _entries(where: Topology) -> Bools:
    """[ranks]: which receive from another node in a ring."""
    found: Bools = (np.arange(where.num_ranks) % where.devices_per_node == 0) & (where.num_nodes > 1)
    return found


def _times(counted: Range, size: float) -> Range:
    return Range(*(_product(one, size) for one in counted))


def _product(values: Numbers, size: float) -> Floats:
    found: Floats = values * size
    return found
