"""What was read of one device, in columns: eight bytes a quantity and time, so that hours fit. It reads nothing."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from moecap.records import DeviceSample
from moecap.telemetry.base import DEVICE_QUANTITIES, Reading

REASONS = "throttle_reasons"
WHOLE = frozenset(f.name for f in fields(DeviceSample) if f.type == "int | None")
"""Quantities that are whole numbers; all of them are far below 2^53, so that a float holds them exactly."""


class DeviceLog:
    """Readings of one device, one row a time."""

    def __init__(self, device_uuid: str, never: Mapping[str, str]) -> None:
        """`never`: quantities that nobody reads -> why."""
        self._device_uuid, self._never = device_uuid, never
        self._times = array("q")
        self._columns = {name: array("d") for name in DEVICE_QUANTITIES if name != REASONS}
        self._reasons: list[tuple[str, ...] | None] = []
        self._failures: dict[str, tuple[str, int]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def add(self, time_ns: int, *readings: Reading) -> None:
        """One row."""
        values: dict[str, Any] = {}
        for reading in readings:
            values.update(reading.values)
            for quantity, why in reading.unknown.items():
                self._failures[quantity] = (why, self._failures.get(quantity, ("", 0))[1] + 1)
        self._times.append(time_ns)
        for name, column in self._columns.items():
            column.append(values.get(name, math.nan))
        self._reasons.append(values.get(REASONS))

    def samples(self) -> Iterator[DeviceSample]:
        """The rows."""
        columns = [
            [None if math.isnan(value) else int(value) if name in WHOLE else value for value in column]
            for name, column in self._columns.items()
        ]
        for time_ns, reasons, *row in zip(self._times, self._reasons, *columns, strict=True):
            known = dict(zip(self._columns, row, strict=True))
            yield DeviceSample(time_ns=time_ns, device_id=self._device_uuid, throttle_reasons=reasons, **known)

    def unknown(self) -> dict[str, str]:
        """Quantity -> why it was never read, or how often it couldn't be. What was only read less often is known."""
        found = dict(self._never)
        for quantity, (why, count) in self._failures.items():
            known = self._known(quantity)
            found[quantity] = why if known == 0 else f"{count} of {count + known} readings: {why}"
        return found

    def _known(self, quantity: str) -> int:
        if quantity == REASONS:
            return sum(one is not None for one in self._reasons)
        return sum(not math.isnan(value) for value in self._columns[quantity])


def unknown_of_devices(by_device: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """`devices.<quantity>` -> why; where devices differ, which is told for what."""
    quantities = dict.fromkeys(quantity for unknown in by_device.values() for quantity in unknown)
    found = {}
    for quantity in quantities:
        reasons = {uuid: unknown.get(quantity) for uuid, unknown in by_device.items()}
        told = {uuid: why for uuid, why in reasons.items() if why is not None}
        same = len(set(reasons.values())) == 1
        text = next(iter(told.values())) if same else "; ".join(f"{uuid}: {why}" for uuid, why in told.items())
        found[f"devices.{quantity}"] = text
    return found
