"""Where points can run: pure functions from points and nodes to placements, or the reason why not.

It starts nothing and asks no node: what it knows of nodes is in NodeInfo. The same input gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.weights import weights_key
from moecap.errors import UnknownDeviceError
from moecap.hardware.catalogue import find_device
from moecap.records import ModelSpec, NodeInfo, Placement, PointSpec, Refusal, SystemSpec, content_hash

DEVICES_PER_ENGINE = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Engine arguments whose product is the number of devices that an engine spans."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Points of one (model, system) on one node: they share a warm engine."""

    model: ModelSpec
    system: SystemSpec
    placement: Placement
    point_ids: tuple[str, ...]


@dataclass(slots=True)
class Placer:
    """Places points one after the other, so that systems spread over equal nodes. Holds what it has placed so far."""

    nodes: Sequence[NodeInfo]
    weight_bytes: Mapping[str, int] = field(default_factory=dict)
    """`weights_key` -> bytes of the weights, where known; what is absent is taken to fit."""
    points_on: dict[str, int] = field(default_factory=dict)
    """Node -> points that it has already; grows with every placement."""
    _fingerprints: dict[str, str] = field(init=False)
    _homes: dict[str, list[NodeInfo]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._fingerprints = {node.node_id: node.fingerprint for node in self.nodes}
        self.points_on = dict.fromkeys(self._fingerprints, 0) | self.points_on

    def place(self, point: PointSpec, fingerprint: str | None = None) -> Placement | Refusal:
        """Where `point` runs; with `fingerprint` only on hardware that has it (earlier repeats ran there).

        A node that runs the same (model, system) already comes first, then nodes whose accelerators would not lie
        idle, then the one with the fewest points.
        """
        system = content_hash([point.model, point.system])
        homes = self._homes.setdefault(system, [])
        found = next((node for node in homes if fingerprint in (None, self._fingerprints[node.node_id])), None)
        if found is None:
            candidates = self._candidates(point, fingerprint)
            if isinstance(candidates, Refusal):
                return candidates
            found = min(candidates, key=lambda node: self._preference(point.system, node))
            homes.append(found)
        self.points_on[found.node_id] += 1
        return _placement(point.system, found)

    def _preference(self, system: SystemSpec, node: NodeInfo) -> tuple[int, int, str, str]:
        idle_devices = len(node.devices) - devices_needed(system, node)
        return idle_devices, self.points_on[node.node_id], node.hostname, node.node_id

    def _candidates(self, point: PointSpec, fingerprint: str | None) -> list[NodeInfo] | Refusal:
        """Nodes that can host the point, or what the narrowest of all conditions was."""
        system = point.system
        of_kind = [node for node in self.nodes if system.node in node.kinds and node.num_cpus > 0]
        if not of_kind:
            return self._refuse_kind(system)
        with_device = [node for node in of_kind if has_device(system, node)]
        if not with_device:
            present = ", ".join(sorted({node.device_key for node in of_kind}))
            return Refusal(
                reason=f"no {system.node} node has device {system.device!r}",
                remedy=f"{system.node} nodes here have: {present}; ask for one of these, or `device: any`",
            )
        large_enough = [node for node in with_device if devices_needed(system, node) <= len(node.devices)]
        if not large_enough:
            return _refuse_size(system, with_device)
        needed = self.weight_bytes.get(weights_key(point.model, point.system), 0)
        roomy = [node for node in large_enough if needed <= memory_bytes(system, node)]
        if not roomy:
            return _refuse_memory(point, needed, large_enough)
        same = [node for node in roomy if fingerprint in (None, self._fingerprints[node.node_id])]
        if not same:
            return Refusal(
                reason=f"its stored repeats ran on hardware {fingerprint}, and no such node is left",
                remedy="bring that node back, or measure into a new store",
            )
        return same

    def _refuse_kind(self, system: SystemSpec) -> Refusal:
        kinds = ", ".join(sorted({kind for node in self.nodes for kind in node.kinds if node.num_cpus > 0})) or "none"
        return Refusal(
            reason=f"no node of kind {system.node!r}",
            remedy=f"kinds here: {kinds}; use one of these, or label a node moecap.io/kind={system.node}",
        )


def place_points(
    points: Iterable[tuple[str, PointSpec]], placer: Placer, fingerprints: Mapping[str, str]
) -> dict[str, Placement | Refusal]:
    """Point id -> where it runs. Points tied to a fingerprint choose first; the answer keeps the order of `points`."""
    listed = list(points)
    tied = [(point_id, point) for point_id, point in listed if point_id in fingerprints]
    free = [(point_id, point) for point_id, point in listed if point_id not in fingerprints]
    placed = {point_id: placer.place(point, fingerprints.get(point_id)) for point_id, point in tied + free}
    return {point_id: placed[point_id] for point_id, _ in listed}


def groups(points: Iterable[tuple[str, PointSpec]], placements: Mapping[str, Placement | Refusal]) -> tuple[Group, ...]:
    """Placed points by the engine that they share, in the order of their first point."""
    members: dict[tuple[str, str], list[tuple[str, PointSpec]]] = {}
    for point_id, point in points:
        placement = placements[point_id]
        if isinstance(placement, Placement):
            system = content_hash([point.model, point.system])
            members.setdefault((system, placement.node_id), []).append((point_id, point))
    return tuple(_group(same_engine, placements) for same_engine in members.values())


def _group(members: Sequence[tuple[str, PointSpec]], placements: Mapping[str, Placement | Refusal]) -> Group:
    first_id, first = members[0]
    placement = placements[first_id]
    assert isinstance(placement, Placement), "only placed points are grouped"
    point_ids = tuple(point_id for point_id, _ in members)
    return Group(model=first.model, system=first.system, placement=placement, point_ids=point_ids)


def has_device(system: SystemSpec, node: NodeInfo) -> bool:
    """Whether the node has the device model that a study asks for: `any`, a catalogue key, an alias, or `cpu`: every
    node has CPUs, but kinds that are accelerated compute on them only where there is nothing else."""
    asked = system.device
    if asked in ("any", node.device_key) or (asked == "cpu" and system.node in ("cpu", "cpu-offload")):
        return True
    try:
        return find_device(asked).key == node.device_key
    except UnknownDeviceError:
        return False  # the driver's own name of an uncatalogued device was compared above


def devices_needed(system: SystemSpec, node: NodeInfo) -> int:
    """Accelerators that an engine of this system takes on this node."""
    if "cpu" in (system.node, system.device) or (system.node == "cpu-offload" and not node.devices):
        return 0
    spans = [int(system.args[name]) for name in DEVICES_PER_ENGINE if name in system.args]
    if not spans and system.node == "expert-parallel":
        return len(node.devices)
    return math.prod(spans)


def memory_bytes(system: SystemSpec, node: NodeInfo) -> int:
    """Memory that may hold weights: the devices taken, else the host; offloading may use both."""
    devices = sum(device.memory_bytes for device in node.devices[: devices_needed(system, node)])
    if system.node == "cpu-offload":
        return devices + node.memory_bytes
    return devices or node.memory_bytes


def _placement(system: SystemSpec, node: NodeInfo) -> Placement:
    taken = node.devices[: devices_needed(system, node)]
    return Placement(
        node_id=node.node_id, hostname=node.hostname, kind=system.node, num_cpus=node.num_cpus,
        device_uuids=tuple(device.uuid for device in taken),
    )  # fmt: skip


def _refuse_size(system: SystemSpec, nodes: Sequence[NodeInfo]) -> Refusal:
    needed = min(devices_needed(system, node) for node in nodes)
    most = max(len(node.devices) for node in nodes)
    return Refusal(
        reason=f"needs {needed} devices on one node; the largest {system.node} node has {most}",
        remedy=f"lower the product of {', '.join(DEVICES_PER_ENGINE)} to {most}, or add a larger node",
    )


def _refuse_memory(point: PointSpec, needed: int, nodes: Sequence[NodeInfo]) -> Refusal:
    most = max(memory_bytes(point.system, node) for node in nodes)
    return Refusal(
        reason=f"{point.model.name} takes {needed / 1e9:.1f} GB; the largest {point.system.node} node has "
        f"{most / 1e9:.1f} GB for it",
        remedy="quantise it, offload it (node: cpu-offload), or add a node with more memory",
    )
