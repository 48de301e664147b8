"""How long collectives take: a fit of measured NCCL times on one host, else what the links' speed alone allows.

The fits lie in collectives.json (scripts/fit_collectives.py makes it; docs/results/collectives.md has their errors on
sizes that they didn't see, which are the bounds here). Several hosts, other devices and more ranks than were measured
get the bytes over the rated speed, a lower bound without an upper one: latency, contention and protocol are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np

from moecap.errors import ConfigError
from moecap.hardware.catalogue import DeviceSpec
from moecap.predict.fit import CLASSES
from moecap.predict.placement import Topology
from moecap.predict.replay import Numbers, Range
from moecap.predict.routing import Floats

Operation = Literal["all_to_all", "all_gather", "reduce_scatter", "all_reduce"]
LINK_SPEED = "link speed only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """What connects ranks, per device and direction."""

    in_node_bytes_per_s: float
    between_nodes_bytes_per_s: float
    device: str
    """Catalogue key; fits are of a device."""


def links_of(spec: DeviceSpec, between_nodes_bytes_per_s: float) -> Links:
    """As rated: half of the scale-up link, which vendors print for both directions, else PCIe. ConfigError without."""
    rate = spec.pcie_bytes_per_s_per_direction if spec.link_bytes_per_s is None else spec.link_bytes_per_s / 2
    if rate is None:
        raise ConfigError("has no link of known speed", "device", spec.key, "use a device with a link or PCIe")
    return Links(in_node_bytes_per_s=rate, between_nodes_bytes_per_s=between_nodes_bytes_per_s, device=spec.key)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Seconds, and what they rest on."""

    seconds: Range
    """`high` is infinite where nothing bounds it."""
    provenance: str


def collective_time(
    operation: Operation, where: Topology, links: Links, in_node_bytes: Numbers, between_nodes_bytes: Numbers
) -> Timed:
    """Of the busiest rank, from the bytes that it moves over its links, of any shape."""
    if where.num_ranks == 1:
        nothing = np.zeros(np.shape(in_node_bytes))
        return Timed(seconds=Range(nothing, nothing, nothing), provenance="one rank")
    measured = _measured(links.device, operation, where)
    if measured is not None:
        return _fitted(operation, where.num_ranks, in_node_bytes, measured)
    in_node_s = in_node_bytes / links.in_node_bytes_per_s
    least = np.maximum(in_node_s, between_nodes_bytes / links.between_nodes_bytes_per_s)
    unbounded = np.where(least > 0, np.inf, 0.0)
    return Timed(seconds=Range(least, least, unbounded), provenance=LINK_SPEED)


def buffer_bytes(operation: Operation, num_ranks: int, moved_bytes: Numbers) -> Numbers:
    """Bytes over a rank's links -> the size of the operation as nccl-tests count it: of n ranks with a buffer of S,
    each moves S (n - 1) / n, and in all-reduce twice that."""
    passes = 2 if operation == "all_reduce" else 1
    return moved_bytes * (num_ranks / (num_ranks - 1) / passes)


def _fitted(operation: Operation, num_ranks: int, moved_bytes: Numbers, fit: Mapping[str, Any]) -> Timed:
    size: Floats = np.asarray(buffer_bytes(operation, num_ranks, moved_bytes), dtype=np.float64)
    begins = np.array([piece["from_bytes"] for piece in fit["pieces"]])
    at = np.searchsorted(begins, size, side="right") - 1
    latency = np.array([piece["latency_s"] for piece in fit["pieces"]])[at]
    value = np.where(size > 0, latency + size * np.array([one["s_per_byte"] for one in fit["pieces"]])[at], 0.0)
    names = [name for _, name in CLASSES]
    in_class = np.searchsorted([most for most, _ in CLASSES], size)
    lowest = np.array([min(0.0, fit["errors"][name]["low"]) for name in names])[in_class]
    highest = np.array([max(0.0, fit["errors"][name]["high"]) for name in names])[in_class]
    of = "" if fit["num_gpus"] == num_ranks else f", taken for {num_ranks}"
    provenance = f"fit of NCCL {fit['nccl_version']} on {fit['num_gpus']} {fit['device']} of one host{of}"
    return Timed(seconds=Range(value / (1 + highest), value, value / (1 + lowest)), provenance=provenance)


def _measured(device: str, operation: Operation, where: Topology) -> Mapping[str, Any] | None:
    """The fit for as many GPUs, or the next more that were measured; None: not of this device, or not so many."""
    if where.num_nodes > 1:
        return None
    mine = [one for one in _fits() if (one["device"], one["operation"]) == (device, operation)]
    enough = [one for one in mine if one["num_gpus"] >= where.num_ranks]
    return min(enough, key=lambda one: int(one["num_gpus"]), default=None)


@cache
def _fits() -> tuple[Mapping[str, Any], ...]:
    text = files("moecap.predict").joinpath("collectives.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["fits"])
