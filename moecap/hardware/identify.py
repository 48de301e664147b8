"""Which row of the catalogue a detected device is: by its exact name and its memory, and by PCI id where these leave a
choice. It asks no device; `detect` does.

What no row fits is unknown: it stays without a key and without rated peaks, with the reason and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moecap.hardware.catalogue import DeviceSpec, catalogue, catalogue_peaks, keys_named
from moecap.records import DeviceInfo, Peaks

MEMORY_TOLERANCE = 0.1
"""Relative difference of reported and listed memory within which they are the same.

Error correction of GDDR memory takes a sixteenth (6.25 %), and may be on or off; drivers keep about half a percent; an
SoC's firmware and kernel keep 4 to 7 % of the memory that it shares with them. Variants of one name differ by a quarter
or more, or else by their PCI id.
"""
REMEDY = "add a row to the hardware catalogue (docs/hardware.md), or calibrate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a detected device is."""

    key: str | None
    """Catalogue key; None when no single row fits."""
    candidates: tuple[str, ...] = ()
    """Keys of the devices that report its name."""
    reason: str = ""
    """Why there is no key, and what to do."""


def identify(name: str, memory_bytes: int | None = None, pci_id: str | None = None) -> Identity:
    """The device that reports `name`, `memory_bytes` and `pci_id` (`vendor:device`); None: not reported, not compared.

    Memory must fit. A PCI id chooses among what fits. A row that shares the name is taken only on its PCI id where the
    catalogue has one, else on its memory: the name alone would take a device without a row for the one that has one.
    """
    own, shared = keys_named(name)
    candidates = tuple(dict.fromkeys((*own, *shared)))
    if not candidates:
        return _unknown(f"no row carries the name {name!r}", candidates)
    rows = [catalogue()[key] for key in candidates]
    fitting = [row for row in rows if memory_fits(row, memory_bytes)]
    if not fitting:
        listed = ", ".join(f"{row.key} {_gib(row.memory_bytes)}" for row in rows)
        return _unknown(f"{name!r} reports {_gib(memory_bytes)} of memory, the catalogue has {listed}", candidates)
    left = [row for row in fitting if _has_pci_id(row, pci_id)] or fitting
    if len(left) == 1 and (left[0].key in own or _is_told(left[0], memory_bytes, pci_id)):
        return Identity(key=left[0].key, candidates=candidates)
    keys, asked = ", ".join(row.key for row in left), pci_id or "not reported"
    return _unknown(f"{name!r} ({_gib(memory_bytes)}, PCI id {asked}) may be {keys} or none of them", candidates)


def memory_fits(row: DeviceSpec, memory_bytes: int | None) -> bool:
    """Whether a device that reports so much memory may be this one; what isn't known contradicts nothing."""
    if memory_bytes is None or row.memory_bytes is None:
        return True
    return abs(memory_bytes / row.memory_bytes - 1) <= MEMORY_TOLERANCE


def rated_peaks(devices: Sequence[DeviceInfo]) -> Peaks:
    """Catalogue peaks of these devices together; unknown, with the reason as method, where there is no row for one of
    them or they are of several models."""
    keys = {device.key for device in devices}
    if len(keys) == 1 and None not in keys:
        return catalogue_peaks(catalogue()[next(iter(filter(None, keys)))], len(devices))
    unknown = next((device for device in devices if device.key is None), None)
    if unknown is None:
        reason = f"no rating for devices of several models together: {', '.join(sorted(filter(None, keys)))}"
    else:
        reason = identify(unknown.name, unknown.memory_bytes).reason or f"{unknown.name!r} is no known device; {REMEDY}"
    return Peaks(source="catalogue", memory_bytes_per_s=None, flops_per_s={}, method=reason)


def _is_told(row: DeviceSpec, memory_bytes: int | None, pci_id: str | None) -> bool:
    """Whether what is reported beside a shared name is this device's own."""
    return _has_pci_id(row, pci_id) if row.pci_ids else memory_bytes is not None


def _has_pci_id(row: DeviceSpec, pci_id: str | None) -> bool:
    return pci_id is not None and pci_id.lower() in row.pci_ids


def _unknown(reason: str, candidates: tuple[str, ...]) -> Identity:
    return Identity(key=None, candidates=candidates, reason=f"{reason}; {REMEDY}")


def _gib(memory_bytes: int | None) -> str:
    return "unknown memory" if memory_bytes is None else f"{memory_bytes / 2**30:.1f} GiB"
