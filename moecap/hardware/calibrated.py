"""Which parts of a node are calibrated, and what the calibrations of a placement amount to. Pure: what measures
and keeps them is `calibration`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from moecap.records import Calibration, DeviceInfo, HardwarePart, NodeInfo, Peaks, Placement, Rates

Conditions = Mapping[str, Mapping[str, str]]
"""Device UUID -> what its rates depend on beside the device; under the empty string, what those of every part do."""


def parts_of_node(node: NodeInfo, conditions: Conditions) -> list[HardwarePart]:
    """Its CPUs, each of its devices, and the exchange of data between the largest group of like devices."""
    devices = [_device_part(device, node, conditions) for device in node.devices]
    name, count = next(iter(Counter(device.name for device in node.devices).most_common(1)), ("", 0))
    alike = [one for one in devices if one.name == name]
    together = [replace(alike[0], kind="collectives", device_uuids=_uuids(alike))] if count > 1 else []
    return [_cpu_part(node, node.num_cpus, conditions), *devices, *together]


def parts_of_placement(node: NodeInfo, placement: Placement, conditions: Conditions) -> list[HardwarePart]:
    """What the peaks of a placement rest on: its devices, else its CPUs; for offloading the host with its disk, too."""
    placed = [device for device in node.devices if device.uuid in placement.device_uuids]
    devices = [_device_part(device, node, conditions) for device in placed]
    if devices and placement.kind != "cpu-offload":
        return devices
    return [*devices, _cpu_part(node, placement.num_cpus, conditions)]


def failed(reason: str) -> Rates:
    """Of a part that could not be measured: unknown peaks, with the reason."""
    nothing = Peaks(source="calibrated", memory_bytes_per_s=None, flops_per_s={}, method=f"failed: {reason}")
    return Rates(peaks=nothing, unknown={"all": reason})


def placed_peaks(placement: Placement, calibrations: Sequence[Calibration]) -> Peaks | None:
    """Peaks of a placement: those of its CPUs, or the sums over its devices, with the host's disk where that was
    measured; None when nothing was calibrated for it."""
    host = next((one.rates.peaks for one in calibrations if one.part.kind == "cpu"), None)
    if not placement.device_uuids:
        return host
    found = {one.part.device_uuids[0]: one.rates.peaks for one in calibrations if one.part.kind == "device"}
    placed = [peaks for uuid in placement.device_uuids if (peaks := found.get(uuid)) is not None]
    if len(placed) < len(placement.device_uuids):
        return None
    total = sum_of(placed)
    if host is None or "ssd" not in host.tier_bytes_per_s:
        return total
    return replace(
        total,
        tier_bytes_per_s={**total.tier_bytes_per_s, "ssd": host.tier_bytes_per_s["ssd"]},
        spread={**total.spread, "ssd": host.spread["ssd"]},
    )


def sum_of(peaks: Sequence[Peaks]) -> Peaks:
    """Of several devices together. A rate that one of them lacks is unknown; spreads are the widest of any."""
    if len(peaks) == 1:
        return peaks[0]
    memory = [one.memory_bytes_per_s for one in peaks if one.memory_bytes_per_s is not None]
    unknown = next((one.method for one in peaks if one.memory_bytes_per_s is None), None)
    return Peaks(
        source="calibrated",
        memory_bytes_per_s=sum(memory) if unknown is None else None,
        flops_per_s=_sums([one.flops_per_s for one in peaks]),
        tier_bytes_per_s=_sums([one.tier_bytes_per_s for one in peaks]),
        method=unknown or f"sum of {len(peaks)} devices, each measured alone; the first: {peaks[0].method}",
        spread={name: max(one.spread.get(name, 0.0) for one in peaks) for one in peaks for name in one.spread},
    )


def _sums(rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of what all have."""
    return {name: sum(one[name] for one in rates) for name in rates[0] if all(name in one for one in rates)}


def _cpu_part(node: NodeInfo, num_threads: int, conditions: Conditions) -> HardwarePart:
    return HardwarePart(kind="cpu", name=node.cpu_model, num_threads=num_threads, conditions=conditions.get("", {}))


def _device_part(device: DeviceInfo, node: NodeInfo, conditions: Conditions) -> HardwarePart:
    own = {**conditions.get("", {}), **conditions.get(device.uuid, {}), "host": node.cpu_model}
    return HardwarePart(kind="device", name=device.name, device_uuids=(device.uuid,), conditions=own)


def _uuids(parts: Sequence[HardwarePart]) -> tuple[str, ...]:
    return tuple(uuid for part in parts for uuid in part.device_uuids)
