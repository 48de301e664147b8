"""Where experts live: linear, round-robin, or by measured load with redundant copies; and which ranks share a node.

Pure decisions. A *slot* holds the weights of one expert on one rank; an expert with several slots is redundant. Every
rank holds at least one slot and no expert twice, and ranks differ by at most one slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moecap.errors import ConfigError
from moecap.predict.routing import Bools, Floats, Ints

PlacementKind = Literal["linear", "round-robin", "balanced"]
KINDS: tuple[PlacementKind, ...] = ("linear", "round-robin", "balanced")


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """Ranks of an expert-parallel group: rank r is device r mod `devices_per_node` of node r // `devices_per_node`."""

    num_nodes: int
    devices_per_node: int

    @property
    def num_ranks(self) -> int:
        """The expert-parallel degree."""
        return self.num_nodes * self.devices_per_node

    @property
    def node_of_rank(self) -> Ints:
        """[ranks]."""
        return np.arange(self.num_ranks) // self.devices_per_node


def topology(num_ranks: int, num_nodes: int) -> Topology:
    """`num_ranks` spread evenly over `num_nodes`. ConfigError where that isn't possible."""
    if num_ranks < 1 or num_nodes < 1 or num_ranks % num_nodes:
        remedy = f"use a number of nodes that divides {num_ranks}" if num_ranks > 0 else "use 1 or more"
        raise ConfigError(f"{num_ranks} ranks don't spread evenly over so many nodes", "--ep-nodes", num_nodes, remedy)
    return Topology(num_nodes=num_nodes, devices_per_node=num_ranks // num_nodes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Slots of one layer, ordered by expert."""

    num_ranks: int
    expert_of_slot: Ints
    """Ascending."""
    rank_of_slot: Ints

    def __post_init__(self) -> None:
        pairs = set(zip(self.expert_of_slot.tolist(), self.rank_of_slot.tolist(), strict=True))
        if len(pairs) < len(self.expert_of_slot):
            raise ValueError("a rank holds one expert twice")
        if (np.diff(self.expert_of_slot) < 0).any() or set(np.unique(self.expert_of_slot)) != set(
            range(self.num_experts)
        ):
            raise ValueError("slots are ordered by expert and leave none out")
        if set(np.unique(self.rank_of_slot)) != set(range(self.num_ranks)):
            raise ValueError(f"each of {self.num_ranks} ranks holds a slot")

    @property
    def num_experts(self) -> int:
        """Logical experts."""
        return int(self.expert_of_slot[-1]) + 1

    @property
    def replicas(self) -> Ints:
        """[experts]: slots of each."""
        return np.bincount(self.expert_of_slot)

    @property
    def first_slot(self) -> Ints:
        """[experts]: where the slots of each begin."""
        return np.concatenate(([0], np.cumsum(self.replicas)[:-1]))


def linear(num_experts: int, num_ranks: int) -> Placement:
    """Neighbouring experts together; the first ranks hold one more where they don't divide evenly (vLLM's default)."""
    _check(num_experts, num_ranks)
    least, more = divmod(num_experts, num_ranks)
    sizes = np.where(np.arange(num_ranks) < more, least + 1, least)
    ranks = np.repeat(np.arange(num_ranks), sizes)
    return Placement(num_ranks=num_ranks, expert_of_slot=np.arange(num_experts), rank_of_slot=ranks)


def round_robin(num_experts: int, num_ranks: int) -> Placement:
    """Expert e on rank e mod `num_ranks`."""
    _check(num_experts, num_ranks)
    experts = np.arange(num_experts)
    return Placement(num_ranks=num_ranks, expert_of_slot=experts, rank_of_slot=experts % num_ranks)


def balanced(load: Floats, num_ranks: int, redundant: int = 0) -> Placement:
    """By measured `load` [experts], with `redundant` slots more than experts.

    Each redundant slot goes to the expert whose slots then carry most. Slots, heaviest first, go to the rank with the
    least load that has room and doesn't hold the expert (longest processing time first, with a limit on the number). At
    the end the busiest rank exchanges slots with others as long as that lowers the higher load of the two.
    """
    if redundant < 0:
        raise ConfigError("is less than nothing", "--redundant-experts", redundant, "use 0 or more")
    if redundant > len(load) * (num_ranks - 1):
        most = len(load) * (num_ranks - 1)
        raise ConfigError(
            "would put an expert on a rank twice", "--redundant-experts", redundant, f"use at most {most}"
        )
    _check(len(load) + redundant, num_ranks)
    replicas = _replicas(load, num_ranks, redundant)
    return _dealt(load / replicas, replicas, num_ranks)


def place(kind: PlacementKind, load: Floats, num_ranks: int, redundant: int = 0) -> Placement:
    """By name. ConfigError for redundant experts where nothing says which."""
    if kind == "balanced":
        return balanced(load, num_ranks, redundant)
    if redundant:
        remedy = "use --placement balanced, which chooses them by load"
        raise ConfigError(f"placement {kind} has no redundant experts", "--redundant-experts", redundant, remedy)
    return linear(len(load), num_ranks) if kind == "linear" else round_robin(len(load), num_ranks)


def _check(num_slots: int, num_ranks: int) -> None:
    if num_ranks < 1:
        raise ConfigError("is no number of ranks", "--ep", num_ranks, "use 1 or more")
    if num_slots < num_ranks:
        remedy = (
            f"use at most {num_slots}, or --placement balanced with {num_ranks - num_slots} --redundant-experts more"
        )
        raise ConfigError(f"{num_slots} experts leave ranks without one", "--ep", num_ranks, remedy)


def _replicas(load: Floats, num_ranks: int, redundant: int) -> Ints:
    replicas = np.ones(len(load), dtype=np.int64)
    for _ in range(redundant):
        per_slot = np.where(replicas < num_ranks, load / replicas, -1.0)
        replicas[int(per_slot.argmax())] += 1
    return replicas


def _dealt(slot_load: Floats, replicas: Ints, num_ranks: int) -> Placement:
    least, more = divmod(int(replicas.sum()), num_ranks)
    held = np.zeros((num_ranks, len(replicas)), dtype=np.bool_)
    for expert in np.argsort(-slot_load, kind="stable").tolist():
        for _ in range(replicas[expert]):
            full_at = least + (int((held.sum(axis=1) > least).sum()) < more)
            _put(expert, slot_load, held, full_at)
    _exchange(slot_load, held)
    experts, ranks = held.T.nonzero()
    return Placement(num_ranks=num_ranks, expert_of_slot=experts, rank_of_slot=ranks)


def _put(expert: int, slot_load: Floats, held: Bools, full_at: int) -> None:
    """Give a slot of `expert` to the least loaded rank with room; make room where only its own ranks have some."""
    order = np.argsort(held @ slot_load, kind="stable")
    room = order[held[order].sum(axis=1) < full_at]
    free = room[~held[room, expert]]
    if free.size:
        held[free[0], expert] = True
        return
    # A full rank without the expert holds more experts than the rank with room has beside it: one can move there.
    target = order[~held[order, expert]][0]
    movable = (held[target] & ~held[room[0]]).nonzero()[0]
    moved = movable[slot_load[movable].argmin()]
    held[target, moved], held[room[0], moved], held[target, expert] = False, True, True


def _exchange(slot_load: Floats, held: Bools) -> None:
    """Swap a slot of the busiest rank for another's while the higher load of the two falls."""
    for _ in range(4 * len(slot_load)):
        carried = held @ slot_load
        busiest = int(carried.argmax())
        mine = held[busiest].nonzero()[0]
        others, theirs = (held & ~held[busiest]).nonzero()
        gain = slot_load[mine][:, None] - slot_load[theirs]
        higher = np.maximum(carried[busiest] - gain, carried[others] + gain)
        higher[held[others][:, mine].T] = np.inf  # the other rank holds it already
        if not higher.size or higher.min() >= carried[busiest] * (1 - 1e-9):
            return
        give, take = np.unravel_index(int(higher.argmin()), higher.shape)
        other = others[take]
        held[busiest, mine[give]], held[other, mine[give]] = False, True
        held[other, theirs[take]], held[busiest, theirs[take]] = False, True
