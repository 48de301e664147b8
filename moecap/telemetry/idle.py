"""What devices draw while nothing runs on them: by energy counter, over ten seconds and more.

The counter is followed closely at both ends, so that the time between two of its changes is exact to a few
milliseconds; that also tells how often it changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from moecap.records import DeviceFacts
from moecap.telemetry.base import DeviceSampler
from moecap.telemetry.devices import guarded, opened

IDLE_S = 10.0
FOLLOW_S = 1.5
"""How long the counters are followed at each end."""
STEP_S = 0.005


@dataclass(frozen=True, kw_only=True, slots=True)
class IdlePower:
    """Of one device."""

    power_w: float | None = None
    energy_period_s: float | None = None
    reason: str = ""
    """Why these are unknown."""

    def told_in(self, facts: DeviceFacts) -> DeviceFacts:
        """The facts with these."""
        unknown = dict(facts.unknown)
        if self.power_w is None:
            unknown["idle_power_w"] = self.reason
        if self.energy_period_s is None:
            unknown["energy_period_s"] = self.reason
        return replace(facts, idle_power_w=self.power_w, energy_period_s=self.energy_period_s, unknown=unknown)


def idle_powers(
    samplers: Sequence[DeviceSampler], device_uuids: Sequence[str], seconds: float = IDLE_S,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
) -> dict[str, IdlePower]:  # fmt: skip
    """Of each device, by the first sampler that can read it; all at once. Devices in use have a reason instead."""
    found: dict[str, IdlePower] = {}
    readers: dict[str, DeviceSampler] = {}
    try:
        for sampler in samplers:
            refused = opened(sampler, device_uuids)
            found |= {uuid: IdlePower(reason=why) for uuid, why in refused.items() if uuid not in found}
            readers |= {uuid: sampler for uuid in device_uuids if uuid not in refused and uuid not in readers}
        in_use = {uuid: busy for uuid, sampler in readers.items() if (busy := sampler.busy(uuid))}
        free = {uuid: sampler for uuid, sampler in readers.items() if uuid not in in_use}
        found |= {uuid: IdlePower(reason=f"not idle before the first run: {busy}") for uuid, busy in in_use.items()}
        return found | (_followed(free, seconds, clock, sleep) if free else {})
    finally:
        for sampler in samplers:
            sampler.close()


@dataclass(slots=True)
class _Counter:
    """One energy counter: when it changed, and to what."""

    changes: list[tuple[float, float]]
    last_j: float | None = None
    reason: str = "the energy counter did not change"

    def see(self, now_s: float, energy_j: float | None, reason: str) -> None:
        if energy_j is None:
            self.reason = reason
        elif energy_j != self.last_j:
            if self.last_j is not None:
                self.changes.append((now_s, energy_j))
            self.last_j = energy_j


def _followed(
    readers: dict[str, DeviceSampler], seconds: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> dict[str, IdlePower]:
    starts = _follow(readers, clock, sleep)
    sleep(seconds)
    ends = _follow(readers, clock, sleep)
    in_use = {uuid: sampler.busy(uuid) for uuid, sampler in readers.items()}
    return {
        uuid: IdlePower(reason=f"not idle while it was measured: {in_use[uuid]}")
        if in_use[uuid]
        else _power(starts[uuid], ends[uuid])
        for uuid in readers
    }


def _follow(
    readers: dict[str, DeviceSampler], clock: Callable[[], float], sleep: Callable[[float], None]
) -> dict[str, _Counter]:
    counters = {uuid: _Counter([]) for uuid in readers}
    until_s = clock() + FOLLOW_S
    while (now_s := clock()) < until_s:
        for uuid, sampler in readers.items():
            reading = guarded(sampler, uuid, round(now_s * 1e9), edge=True)  # everything is read
            counters[uuid].see(clock(), reading.values.get("energy_j"), reading.unknown.get("energy_j", ""))
        sleep(STEP_S)
    return counters


def _power(start: _Counter, end: _Counter) -> IdlePower:
    if not start.changes or not end.changes:
        return IdlePower(reason=(end if start.changes else start).reason)
    (from_s, from_j), (to_s, to_j) = start.changes[0], end.changes[-1]
    gaps = [after[0] - before[0] for one in (start, end) for before, after in pairwise(one.changes)]
    period_s = median(gaps) if gaps else None
    reason = "" if gaps else f"the energy counter changed only once in {FOLLOW_S} s"
    return IdlePower(power_w=(to_j - from_j) / (to_s - from_s), energy_period_s=period_s, reason=reason)
