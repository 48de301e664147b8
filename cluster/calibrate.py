"""Calibrates every node of a cluster while nothing else of Ray runs on it, all nodes at the same time.

What is measured on a node, and where it is kept, moecap.hardware.calibration knows; how it reads, cluster.rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.inventory import LiveNode, on_node
from cluster.node import NodeAgent
from moecap.hardware.calibration import Known
from moecap.records import NodeInfo

BUSY_S = 60.0
"""How long a node's CPUs and devices may be held by others until it is given up."""
NODE_S = 300.0
DEVICE_S = 90.0
"""Most for a node, and besides for each of its devices; a tenth of it is usual."""
BUSY = "other work holds its CPUs or devices: wait for it (`ray status` shows it) and try again"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeCalibration:
    """What is known of a node's parts."""

    node: NodeInfo
    known: tuple[Known, ...] = ()
    error: str | None = None
    """Why nothing is known."""

    @property
    def good(self) -> bool:
        """Whether every part has rates."""
        return self.error is None and not any("all" in one.calibration.rates.unknown for one in self.known)


def calibrate_fleet(
    nodes: Sequence[LiveNode], again: bool, report: Callable[[NodeCalibration], None]
) -> list[NodeCalibration]:
    """Of every node, in their order; each is reported as soon as it is known."""
    begun_s = time.monotonic()
    done: dict[str, NodeCalibration] = {}
    pending = dict(_asked(node.info, again) for node in nodes if node.info.num_cpus)
    for node in nodes:
        if not node.info.num_cpus:
            done[node.info.node_id] = NodeCalibration(node=node.info, error="it offers no CPUs to Ray")
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
        for ref, asked in list(pending.items()):
            waited_s = time.monotonic() - begun_s
            one = _answer(ref, asked.info) if ref in ready else _overdue(asked, waited_s)
            if one is not None:
                del pending[ref]
                done[asked.info.node_id] = one
                ray.kill(asked.holder)
                report(one)
    return [done[node.info.node_id] for node in nodes]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """A node that is being calibrated, or waited for."""

    info: NodeInfo
    holder: Any
    """An agent that holds all CPUs and devices of the node, so that no engine runs beside what it measures."""
    held: Any
    """Answered as soon as it has them."""


def _asked(info: NodeInfo, again: bool) -> tuple[Any, _Asked]:
    """A reference to what the node will answer."""
    offered = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == info.node_id)
    options: dict[str, Any] = {"num_cpus": info.num_cpus, "num_gpus": int(offered.get("GPU", 0))}
    holder = ray.remote(NodeAgent).options(**options, scheduling_strategy=on_node(info.node_id)).remote()
    held = holder.version.remote()  # before the other call: an actor answers in order
    return holder.calibrate_all.remote(info, again), _Asked(info=info, holder=holder, held=held)


def _answer(ref: Any, info: NodeInfo) -> NodeCalibration:
    try:
        return NodeCalibration(node=info, known=tuple(ray.get(ref)))
    except RayError as error:
        return NodeCalibration(node=info, error=f"its agent failed: {error}")


def _overdue(asked: _Asked, waited_s: float) -> NodeCalibration | None:
    """Given up: never got hold of, or too slow; None: it may still answer."""
    if waited_s > BUSY_S and not ray.wait([asked.held], timeout=0)[0]:
        return NodeCalibration(node=asked.info, error=BUSY)
    limit_s = BUSY_S + NODE_S + DEVICE_S * len(asked.info.devices)
    return NodeCalibration(node=asked.info, error=f"no answer in {limit_s:.0f} s") if waited_s > limit_s else None
