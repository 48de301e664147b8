"""One peak per hardware: a study that was launched several times was calibrated several times.

Pure: it reads manifests and measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from moecap.records import Manifest, Peaks

Hardware = tuple[str, int, tuple[str, ...]]
"""Fingerprint, and what is used of it: CPUs, and models of devices."""


def hardware_of(manifest: Manifest) -> Hardware:
    """What a calibration is of."""
    placed = [device.name for device in manifest.node.devices if device.uuid in manifest.placement.device_uuids]
    return manifest.fingerprint, manifest.placement.num_cpus, tuple(sorted(placed))


def highest_calibrations(manifests: Iterable[Manifest]) -> Mapping[Hardware, Peaks]:
    """Of every hardware the highest rate, quantity by quantity, that any of its calibrations reached.

    A peak is what is possible: a calibration beside other work finds less, never more.
    """
    found: dict[Hardware, Peaks] = {}
    for manifest in manifests:
        for peaks in manifest.peaks:
            if peaks.source == "calibrated":
                before = found.get(hardware_of(manifest))
                found[hardware_of(manifest)] = peaks if before is None else _higher(before, peaks)
    return found


def with_peaks(manifest: Manifest, calibrated: Mapping[Hardware, Peaks]) -> Manifest:
    """The manifest with its hardware's highest calibration in place of its own."""
    best = calibrated.get(hardware_of(manifest))
    peaks = tuple(best if best and one.source == "calibrated" else one for one in manifest.peaks)
    return replace(manifest, peaks=peaks)


def _higher(one: Peaks, other: Peaks) -> Peaks:
    """The highest of both; method and spread are those of the calibration with more memory bandwidth."""
    first, second = sorted((one, other), key=lambda peaks: peaks.memory_bytes_per_s or 0.0, reverse=True)
    return replace(
        first,
        flops_per_s=_highest(first.flops_per_s, second.flops_per_s),
        tier_bytes_per_s=_highest(first.tier_bytes_per_s, second.tier_bytes_per_s),
    )


def _highest(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {key: max(rates[key] for rates in (one, other) if key in rates) for key in sorted({*one, *other})}
