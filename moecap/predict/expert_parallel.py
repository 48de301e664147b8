"""One expert-parallel layout, replayed: per (pass, layer) what its ranks get, move and wait for, and sums of that.

A layer takes as long as its slowest rank computes, then dispatch and combine, without overlap. A rank computes for as
long as it reads its active experts' weights or multiplies its tokens by them, whichever is longer at the device's
rated peaks (a lower bound). Attention, shared experts and everything outside the routed experts are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moecap.predict.collectives import Links, Operation, collective_time
from moecap.predict.placement import Placement, PlacementKind, Topology, place
from moecap.predict.replay import Copies, Numbers, Range, copies_from_counts, copies_from_ids, rank_loads
from moecap.predict.routing import Floats, Ints, Routing
from moecap.predict.traffic import (
    Backend,
    RowBytes,
    Traffic,
    all_gather_reduce_scatter,
    all_reduce,
    all_to_all,
)

ROWS_AT_ONCE = 16384
"""(pass, rank) arrays of more passes are cut, which keeps memory small and caches warm."""
OPERATIONS: dict[Backend, tuple[Operation, Operation]] = {
    "all_to_all": ("all_to_all", "all_to_all"),
    "all_gather_reduce_scatter": ("all_gather", "reduce_scatter"),
    "all_reduce": ("all_reduce", "all_reduce"),
}
"""What dispatches and what combines; all-reduce only combines, and its dispatch has no bytes."""
WAYS = (
    "dispatch_bytes_in_node",
    "dispatch_bytes_between_nodes",
    "combine_bytes_in_node",
    "combine_bytes_between_nodes",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What a rank computes with, and how wide the experts and rows are."""

    expert_bytes: Sequence[float]
    """Of one routed expert, by MoE layer."""
    expert_flops: Sequence[float]
    """Of one token in one expert, by MoE layer."""
    memory_bytes_per_s: float
    flops_per_s: float
    links: Links
    row: RowBytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How experts are spread."""

    where: Topology
    kind: PlacementKind
    placements: Sequence[Placement]
    """By MoE layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """Arrays are [passes, layers], unless said otherwise."""

    layout: Layout
    backend: Backend
    tokens: Ints
    """[passes]."""
    rank_assignments: Ints
    """[layers, ranks]: over all passes."""
    rank_expert_bytes: Floats
    """[layers, ranks]: weights read over all passes."""
    most_assignments: Ints
    """Of the busiest rank."""
    mean_assignments: Floats
    most_expert_bytes: Floats
    compute_s: Floats
    """Of the slowest rank."""
    mean_compute_s: Floats
    """Of all ranks: what it would be without a straggler."""
    dispatch_s: Range
    combine_s: Range
    bytes: dict[str, Range]
    """By `WAYS`: summed over ranks."""
    busiest_bytes: Range
    """Received in dispatch and sent in combine by the rank that moves most, over both kinds of link."""
    time_provenance: str

    @property
    def imbalance(self) -> Floats:
        """Most over mean assignments; 0 where a pass has none."""
        mean = self.mean_assignments
        found: Floats = np.divide(self.most_assignments, mean, out=np.zeros_like(mean), where=mean > 0)
        return found

    @property
    def layer_s(self) -> Range:
        """Compute, dispatch and combine."""
        return Range(*(self.compute_s + a + b for a, b in zip(self.dispatch_s, self.combine_s, strict=True)))

    @property
    def straggler_tokens(self) -> float:
        """Assignments that the busiest rank has above the mean, over all passes and layers: what others wait for."""
        return float((self.most_assignments - self.mean_assignments).sum())

    @property
    def straggler_share(self) -> float:
        """Of the slowest ranks' compute time, what evenly spread work would not take."""
        whole = float(self.compute_s.sum())
        return 1 - float(self.mean_compute_s.sum()) / whole if whole else 0.0


def lay_out(load: Floats, where: Topology, kind: PlacementKind, redundant: int = 0) -> Layout:
    """The same kind of placement for every layer; `load` [layers, experts]."""
    placements = [place(kind, one, where.num_ranks, redundant) for one in load]
    return Layout(where=where, kind=kind, placements=placements)


def replay(routing: Routing, layout: Layout, backend: Backend, device: Device) -> Replay:
    """What the layout would have done, pass by pass."""
    layers = [_replay_layer(routing, at, layout, backend, device) for at in range(len(routing.layers))]

    def stacked(name: str) -> Numbers:
        return np.stack([getattr(one, name) for one in layers], axis=-1)

    def ranges(name: str) -> Range:
        return Range(*(np.stack(parts, axis=-1) for parts in zip(*(getattr(one, name) for one in layers), strict=True)))

    return Replay(
        layout=layout, backend=backend, tokens=routing.tokens,
        rank_assignments=stacked("rank_assignments").T, rank_expert_bytes=stacked("rank_expert_bytes").T,
        most_assignments=stacked("most_assignments"), mean_assignments=stacked("mean_assignments"),
        most_expert_bytes=stacked("most_expert_bytes"), compute_s=stacked("compute_s"),
        mean_compute_s=stacked("mean_compute_s"), dispatch_s=ranges("dispatch_s"), combine_s=ranges("combine_s"),
        bytes={way: ranges(way) for way in WAYS}, busiest_bytes=ranges("busiest_bytes"),
        time_provenance=layers[0].provenance,
    )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class _Layer:
    """One layer; arrays are [passes], or [ranks] where they say so."""

    rank_assignments: Ints
    rank_expert_bytes: Floats
    most_assignments: Ints
    mean_assignments: Floats
    most_expert_bytes: Floats
    compute_s: Floats
    mean_compute_s: Floats
    dispatch_s: Range
    combine_s: Range
    dispatch_bytes_in_node: Range
    dispatch_bytes_between_nodes: Range
    combine_bytes_in_node: Range
    combine_bytes_between_nodes: Range
    busiest_bytes: Range
    provenance: str


def _replay_layer(routing: Routing, at: int, layout: Layout, backend: Backend, device: Device) -> _Layer:
    parts = [_replay_part(part, at, layout, backend, device) for part in _parts(routing)]
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, object] = {"provenance": parts[0].provenance}
    for name in _Layer.__slots__:
        values = [getattr(part, name) for part in parts]
        if name.startswith("rank_"):
            joined[name] = np.sum(values, axis=0)
        elif isinstance(values[0], Range):
            joined[name] = Range(*map(np.concatenate, zip(*values, strict=True)))
        elif name != "provenance":
            joined[name] = np.concatenate(values)
    return _Layer(**joined)  # type: ignore[arg-type]


def _parts(routing: Routing) -> Iterator[Routing]:
    step = ROWS_AT_ONCE
    for first in range(0, max(1, routing.num_passes), step):
        whole = first == 0 and routing.num_passes <= step
        yield routing if whole else routing.between(first, min(first + step, routing.num_passes))


def _replay_part(routing: Routing, at: int, layout: Layout, backend: Backend, device: Device) -> _Layer:
    placement, where = layout.placements[at], layout.where
    loads = rank_loads(routing.counts[:, at], placement)
    read = loads.active_experts * device.expert_bytes[at]
    compute = np.maximum(
        read / device.memory_bytes_per_s, loads.assignments * (device.expert_flops[at] / device.flops_per_s)
    )
    moved = _traffic(routing, at, placement, where, backend=backend, row=device.row)
    sides = (
        (moved.dispatch_in_node, moved.dispatch_between_nodes),
        (moved.combine_in_node, moved.combine_between_nodes),
    )
    timed = [
        _busiest_time(operation, where, device.links, *side)
        for operation, side in zip(OPERATIONS[backend], sides, strict=True)
    ]
    all_ways = [one for side in sides for one in side]
    return _Layer(
        rank_assignments=loads.assignments.sum(axis=0), rank_expert_bytes=read.sum(axis=0),
        most_assignments=loads.assignments.max(axis=1), mean_assignments=loads.assignments.mean(axis=1),
        most_expert_bytes=read.max(axis=1), compute_s=compute.max(axis=1), mean_compute_s=compute.mean(axis=1),
        dispatch_s=timed[0][0], combine_s=timed[1][0], provenance=timed[1][1],
        busiest_bytes=Range(*(np.sum(parts, axis=0).max(axis=1) for parts in zip(*all_ways, strict=True))),
        **{name: Range(*(one.sum(axis=1) for one in way)) for name, way in zip(WAYS, all_ways, strict=True)},
    )  # fmt: skip


def copies_of(routing: Routing, at: int, placement: Placement, where: Topology) -> Copies:
    """Exact where tokens' experts are known, else bounded."""
    if routing.token_experts is None:
        return copies_from_counts(routing.counts[:, at], routing.tokens, routing.top_k, placement, where)
    return copies_from_ids(routing.token_experts[:, at], routing.tokens, placement, where)


def _traffic(
    routing: Routing, at: int, placement: Placement, where: Topology, *, backend: Backend, row: RowBytes
) -> Traffic:
    if backend == "all_gather_reduce_scatter":
        return all_gather_reduce_scatter(routing.tokens, where, row)
    if backend == "all_reduce":
        return all_reduce(routing.tokens, where, row)
    return all_to_all(copies_of(routing, at, placement, where), row)


def _busiest_time(
    operation: Operation, where: Topology, links: Links, in_node: Range, between: Range
) -> tuple[Range, str]:
    """Of bytes [passes, ranks] the time of the busiest rank: bounds of bytes and of the time's estimate together."""
    timed = [
        collective_time(operation, where, links, one.max(axis=1), other.max(axis=1))
        for one, other in zip(in_node, between, strict=True)
    ]
    seconds = Range(timed[0].seconds.low, timed[1].seconds.value, timed[2].seconds.high)
    return seconds, timed[1].provenance
