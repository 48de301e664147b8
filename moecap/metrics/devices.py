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


def device_series(run: RunData, column: str) -> Mapping[str, Series]:
    """UUID of every placed device -> its readings of that quantity, which may be none."""
    table = run.devices
    uuids = run.manifest.placement.device_uuids
    return {uuid: series_of(table.filter(pc.equal(table["device_id"], uuid)), column) for uuid in uuids}


def increase(run: RunData, column: str, stretch: Stretch, worth: Mapping[str, float] | None = None) -> Reading:
    """What a counter rose by; `worth`: UUID -> what one unit of that device's is, where it isn't 1."""

    def of(series: Series) -> float | str:
        return SET_BACK if series.falls else series.increase(stretch)

    return _summed(run, column, stretch, of, worth or {})


def integral(run: RunData, column: str, stretch: Stretch) -> Reading:
    """What a rate amounts to."""
    return _summed(run, column, stretch, lambda series: series.integral(stretch), {})


def _summed(
    run: RunData, column: str, stretch: Stretch, of: Callable[[Series], float | str], worth: Mapping[str, float]
) -> Reading:
    found = device_series(run, column)
    if not found:
        return Reading(missing=NO_DEVICE)
    total, n = 0.0, 0
    for uuid, series in found.items():
        value = _why_unknown(run, column, series, stretch) or of(series)
        if isinstance(value, str):
            return Reading(missing=f"{column} of {uuid}: {value}")
        total, n = total + value * worth.get(uuid, 1.0), n + series.inside(stretch)
    return Reading(value=total, n=n)


def _why_unknown(run: RunData, column: str, series: Series, stretch: Stretch) -> str:
    """Empty: it is known."""
    if not len(series.times_ns):
        return run.manifest.unknown.get(f"devices.{column}", "it was not sampled")
    if (count := series.inside(stretch)) < MIN_READINGS:
        return f"{count} readings lie in the window, fewer than {MIN_READINGS}"
    return "" if series.covers(stretch) else "its readings don't reach from the window's start to its end"


def facts_of(run: RunData, field: str) -> Mapping[str, float] | str:
    """UUID of every placed device -> a number of its `DeviceFacts`, or a property of them; or why one is unknown."""
    found = {}
    for uuid in run.manifest.placement.device_uuids:
        facts = run.manifest.device_facts.get(uuid)
        value: float | None = None if facts is None else getattr(facts, field)
        if value is None:
            return f"{field} of {uuid}: {_why_no_fact(facts, field)}"
        found[uuid] = value
    return found or NO_DEVICE


def _why_no_fact(facts: DeviceFacts | None, field: str) -> str:
    if facts is None:
        return "the device's settings were not read"
    reasons = (facts.unknown.get(name) for name in (field, *MADE_OF.get(field, ())))
    return next(filter(None, reasons), "the driver doesn't tell")


def is_sliced(run: RunData) -> bool:
    """Whether a placed device is cut into instances, whose driver counts for the whole of it."""
    return any(one.mig for one in run.manifest.device_facts.values())
