"""What a run's placement is of its node, in priced parts: accelerators, and its share of the host's components.

Cost basis `node`. The host's share is that of the placed accelerators among the node's or, without any, of the placed
CPUs. A host priced as a server of `num_cpus` is charged by the node's CPUs, its DRAM by the node's real memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moecap.hardware.catalogue import DeviceSpec, find_device
from moecap.prices.table import Component, Device, Host, Prices, ranged
from moecap.prices.uncertain import Uncertain, exactly, total
from moecap.records import NodeInfo, Placement

UNPRICED_DEVICE = "a placed device has no price in the catalogue; add it to prices.devices"
MEMORY_GB = 2**30
"""Bytes of a GB as DRAM is sold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One component, as much of it as the placement takes."""

    component: str
    """`device`, a component of the host, or `host` where it has one price."""
    price_usd: Uncertain | None
    watts: float | None
    told: str
    """Its price as a reader would check it."""
    ranges_told: str = ""
    """Where its price has the range of all of the catalogue's, that range's label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """The parts, and the labels of the entries that they come from."""

    parts: tuple[Part, ...]
    devices: tuple[Device | None, ...]
    host: Host
    share: float
    """Of the node's host, by devices or CPUs."""
    of_server: float
    """What the node is of the host that the price is for."""

    @property
    def labels(self) -> str:
        """What the prices rest on, a host's components with their prices."""
        told = [part.told for part in self.parts if part.component not in ("device", "host")]
        host = f"{self.host.label}: {' + '.join(told)}" if told else self.host.label
        ranges = [part.ranges_told for part in self.parts if part.ranges_told]
        return ", ".join(dict.fromkeys([host, *(one.label for one in self.devices if one is not None), *ranges]))


def placed_on(node: NodeInfo, placement: Placement, prices: Prices) -> Placed:
    """What the placement takes of the node."""
    host = prices.host(node.hostname, node.cpu_model)
    of_server = node.num_cpus / (host.num_cpus or node.num_cpus)
    uuids = placement.device_uuids
    share = len(uuids) / len(node.devices) if uuids else placement.num_cpus / node.num_cpus
    keys = [one.key or one.name for one in node.devices if one.uuid in uuids]
    devices = tuple(prices.device(key) for key in keys)
    parts = [_accelerator(one, prices.ranges_told(key)) for key, one in zip(keys, devices, strict=True)]
    if not host.components:
        whole = Part(component="host", price_usd=host.price_usd, watts=host.tdp_w, told=host.label)
        parts.append(_scaled(whole, share * of_server))
    for name, one in host.components.items():
        own = name == "dram" and one.gb is None  # the node's, whatever server the other components are of
        whole = _whole(name, one, prices, node.memory_bytes / MEMORY_GB if own else one.gb)
        parts.append(_scaled(whole, share if own else share * of_server))
    return Placed(parts=tuple(parts), devices=devices, host=host, share=share, of_server=of_server)


def _accelerator(one: Device | None, ranges_told: str) -> Part:
    if one is None:
        return Part(component="device", price_usd=None, watts=None, told="")
    return Part(
        component="device", price_usd=one.price_usd, watts=one.tdp_w, told=one.label, ranges_told=ranges_told
    )  # fmt: skip


def _whole(name: str, one: Component, prices: Prices, gb: float | None) -> Part:
    """A component as large as it is priced."""
    row = None if one.catalogue is None else find_device(one.catalogue)
    apiece, per_gb, ranges_told = one.price_usd, one.price_usd_per_gb, ""
    if apiece is None and per_gb is None and row is not None:
        factors = one.price_range or prices.catalogue.price_range
        apiece, per_gb = ranged(row.price_usd, factors), ranged(row.price_usd_per_gb, factors)
        ranges_told = "" if one.price_range or apiece is per_gb is None else prices.catalogue.label
    price = None if apiece is None else apiece * one.count
    if per_gb is not None and gb is not None:
        price = per_gb * gb
    told = _told(name, one, apiece, per_gb)
    return Part(component=name, price_usd=price, watts=_watts(one, row, gb), told=told, ranges_told=ranges_told)


def _watts(one: Component, row: DeviceSpec | None, gb: float | None) -> float | None:
    """By pieces and by GB, whichever is known; None without either."""
    apiece = one.tdp_w or (None if row is None else row.tdp_w)
    known = [] if apiece is None else [apiece * one.count]
    known += [] if one.w_per_gb is None or gb is None else [one.w_per_gb * gb]
    return sum(known) if known else None


def _scaled(part: Part, by: float) -> Part:
    price, watts = part.price_usd, part.watts
    return replace(part, price_usd=None if price is None else price * by, watts=None if watts is None else watts * by)


def _told(name: str, one: Component, apiece: Uncertain | None, per_gb: Uncertain | None) -> str:
    """`cpu 2 x 11,805 USD`, `ssd 3,840 GB at 0.2 USD/GB`, `dram of the node at 20 USD/GB`."""
    if per_gb is not None:
        return f"{name} {'of the node' if one.gb is None else f'{one.gb:,g} GB'} at {per_gb.value:,g} USD/GB"
    if apiece is None:
        return f"{name} of unknown price"
    return f"{name} {f'{one.count} x ' if one.count > 1 else ''}{apiece.value:,g} USD"


def purchase_usd(placed: Placed) -> tuple[Uncertain | None, str]:
    """Price of all parts, or why it is unknown."""
    if None in placed.devices:
        return None, UNPRICED_DEVICE
    known = [part.price_usd for part in placed.parts if part.price_usd is not None]
    if len(known) < len(placed.parts):
        return None, f"no price is known ({placed.labels})"
    return total(known), ""


def rental_usd_per_hour(placed: Placed) -> tuple[Uncertain | None, str]:
    """Hourly price of the devices, and of the host's share unless theirs include it; or why it is unknown."""
    if None in placed.devices:
        return None, UNPRICED_DEVICE
    devices = [one for one in placed.devices if one is not None]
    rents = [one.rental_usd_per_hour for one in devices]
    if not devices or not all(one.rental_includes_host for one in devices):
        host = placed.host.rental_usd_per_hour
        rents.append(None if host is None else host * (placed.share * placed.of_server))
    known = [rent for rent in rents if rent is not None]
    if len(known) < len(rents):
        return None, f"no rental price is known ({placed.labels})"
    return total(known), ""


def price_by_component(parts: Sequence[Part]) -> dict[str, Uncertain | None]:
    """Component -> price of all its parts; None where one is unknown."""
    found: dict[str, Uncertain | None] = {}
    for part in parts:
        so_far = found.get(part.component, exactly(0.0))
        found[part.component] = None if so_far is None or part.price_usd is None else so_far + part.price_usd
    return found
