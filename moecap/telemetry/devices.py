"""The devices of one recording: their samplers opened, asked in turn, and what they said. It keeps no time of its own.

Whatever a sampler lets escape makes its quantities unknown and never ends a recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from moecap.records import DeviceFacts
from moecap.telemetry.base import DEVICE_QUANTITIES, DeviceSampler, Reading
from moecap.telemetry.devicelog import REASONS, DeviceLog

FACTS = tuple(f.name for f in fields(DeviceFacts) if f.name not in ("name", "unknown"))


class Devices:
    """Opened when it is made; `close` gives back what that took."""

    def __init__(self, samplers: Sequence[DeviceSampler], device_uuids: Sequence[str]) -> None:
        self._samplers = samplers if device_uuids else ()
        refused = {sampler: opened(sampler, device_uuids) for sampler in self._samplers}
        self._readers = {
            uuid: [sampler for sampler in self._samplers if uuid not in refused[sampler]] for uuid in device_uuids
        }
        self.logs: dict[str, DeviceLog] = {}
        self.facts: dict[str, DeviceFacts] = {}
        for uuid, readers in self._readers.items():
            never = _never(readers, uuid, refused)
            self.logs[uuid] = DeviceLog(uuid, never)
            self.facts[uuid] = _facts(readers, uuid, never.get("power_w", "no sampler tells it"))

    def take(self, *, edge: bool, charge: Callable[[object], None]) -> None:
        """One row of each device, all of one time, so that readings of several can be added. `charge` is called after
        each sampler."""
        now_ns = time.monotonic_ns()
        for uuid, readers in self._readers.items():
            readings = []
            for sampler in readers:
                readings.append(guarded(sampler, uuid, now_ns, edge=edge))
                charge(sampler)
            self.logs[uuid].add(now_ns, *readings)

    def close(self) -> None:
        """Of all samplers."""
        for sampler in self._samplers:
            sampler.close()


def opened(sampler: DeviceSampler, device_uuids: Sequence[str]) -> Mapping[str, str]:
    """Devices that it can't read -> why; all of them when it can't be opened."""
    try:
        return sampler.open(device_uuids)
    except Exception as error:  # noqa: BLE001 - a sampler may be anybody's; the reason is kept in the record
        return dict.fromkeys(device_uuids, f"{type(error).__name__}: {error}")


def guarded(sampler: DeviceSampler, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
    """What it says; all its quantities unknown when it raises."""
    try:
        reading = sampler.sample(device_uuid, now_ns, edge=edge)
        for quantity, value in reading.values.items():
            if quantity != REASONS and not isinstance(value, int | float):
                raise TypeError(f"{quantity} is {value!r}, no number")
        return reading
    except Exception as error:  # noqa: BLE001 - as above
        return Reading(unknown=dict.fromkeys(sampler.quantities, f"{type(error).__name__}: {error}"))


def _never(
    readers: Sequence[DeviceSampler], device_uuid: str, refused: Mapping[DeviceSampler, Mapping[str, str]]
) -> dict[str, str]:
    """Quantities that no sampler reads of this device -> why those that could refused it."""
    covered = {quantity for sampler in readers for quantity in sampler.quantities}
    found = {}
    for quantity in (one for one in DEVICE_QUANTITIES if one not in covered):
        able = [why for sampler, why in refused.items() if quantity in sampler.quantities]
        found[quantity] = "; ".join(dict.fromkeys(why[device_uuid] for why in able)) or "no sampler was asked for it"
    return found


def _facts(readers: Sequence[DeviceSampler], device_uuid: str, no_reader: str) -> DeviceFacts:
    """Of the first sampler that tells them."""
    why = no_reader
    for sampler in readers:
        try:
            facts = sampler.facts(device_uuid)
        except Exception as error:  # noqa: BLE001 - as above
            why = f"{type(error).__name__}: {error}"
        else:
            if facts is not None:
                return facts
    return DeviceFacts(name="unknown", unknown=dict.fromkeys(FACTS, why))
