"""What the placed devices' samples say over a stretch of time, summed over the devices. It declares no metric.

A sum is of all placed devices: with one of them silent it is unknown, for that device's reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from moecap.metrics.series import Series, Stretch, series_of
from moecap.records import DeviceFacts
from moecap.store import RunData

MIN_READINGS = 3
"""Inside a stretch, without which nothing is known of it."""
MADE_OF = {"dram_bytes_per_s": ("memory_bus_bits", "memory_clock_max_hz")}
"""Property of `DeviceFacts` -> its fields."""
SLICED = "the driver counts for the whole device, of which the run has an instance (MIG)"
SET_BACK = "it fell: no counter does, unless its driver was loaded anew"
NO_DEVICE = "the run computes on the host's CPUs: no device was placed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A number, or why there is none."""

    value: float | None = None
    missing: str = ""
    n: int = 0
    """Readings that it rests on."""


class PlacedDevices:
    """The samples of a run's devices, each quantity taken apart once."""

    def __init__(self, run: RunData) -> None:
        self.uuids = run.manifest.placement.device_uuids
        self._tables = {uuid: run.devices.filter(pc.equal(run.devices["device_id"], uuid)) for uuid in self.uuids}
        self._facts, self._unknown = run.manifest.device_facts, run.manifest.unknown
        self._series: dict[str, dict[str, Series]] = {}

    @property
    def is_sliced(self) -> bool:
        """Whether one is cut into instances, whose driver counts for the whole of it."""
        return any(one.mig for one in self._facts.values())

    def series(self, column: str) -> Mapping[str, Series]:
        """UUID of every device -> its readings of that quantity, which may be none."""
        if column not in self._series:
            self._series[column] = {uuid: series_of(table, column) for uuid, table in self._tables.items()}
        return self._series[column]

    def increase(self, column: str, stretch: Stretch, worth: Mapping[str, float] | None = None) -> Reading:
        """What a counter rose by; `worth`: UUID -> what one unit of that device's is, where it isn't 1."""

        def of(series: Series) -> float | str:
            return SET_BACK if series.falls else series.increase(stretch)

        return self._summed(column, stretch, of, worth or {})

    def integral(self, column: str, stretch: Stretch) -> Reading:
        """What a rate amounts to."""
        return self._summed(column, stretch, lambda series: series.integral(stretch), {})

    def _summed(
        self, column: str, stretch: Stretch, of: Callable[[Series], float | str], worth: Mapping[str, float]
    ) -> Reading:
        if not self.uuids:
            return Reading(missing=NO_DEVICE)
        total, n = 0.0, 0
        for uuid, series in self.series(column).items():
            value = self._why_unknown(column, series, stretch) or of(series)
            if isinstance(value, str):
                return Reading(missing=f"{column} of {uuid}: {value}")
            total, n = total + value * worth.get(uuid, 1.0), n + series.inside(stretch)
        return Reading(value=total, n=n)

    def _why_unknown(self, column: str, series: Series, stretch: Stretch) -> str:
        """Empty: it is known."""
        if not len(series.times_ns):
            return self.why_unread(column)
        if (count := series.inside(stretch)) < MIN_READINGS:
            return f"{count} readings lie in the window, fewer than {MIN_READINGS}"
        return "" if series.covers(stretch) else "its readings don't reach from the window's start to its end"

    def why_unread(self, column: str) -> str:
        """Why no sample has the quantity."""
        return self._unknown.get(f"devices.{column}", "it was not sampled")

    def facts(self, field: str) -> Mapping[str, float] | str:
        """UUID of every device -> a number of its `DeviceFacts`, or a property of them; or why one is unknown."""
        found = {}
        for uuid in self.uuids:
            facts = self._facts.get(uuid)
            value: float | None = None if facts is None else getattr(facts, field)
            if value is None:
                return f"{field} of {uuid}: {_why_no_fact(facts, field)}"
            found[uuid] = value
        return found or NO_DEVICE

    def energy_period_s(self, uuid: str) -> float | None:
        """How often a device's energy counter changes: as measured, else as its samples show; None: neither tells."""
        facts = self._facts.get(uuid)
        measured = None if facts is None else facts.energy_period_s
        return measured or self.series("energy_j")[uuid].update_period_s


def _why_no_fact(facts: DeviceFacts | None, field: str) -> str:
    if facts is None:
        return "the device's settings were not read"
    reasons = (facts.unknown.get(name) for name in (field, *MADE_OF.get(field, ())))
    return next(filter(None, reasons), "the driver doesn't tell")
