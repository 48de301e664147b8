"""The recorder: asks samplers of the host and of devices on a fixed cadence, in a thread of its own, and keeps what
they say. It reads no quantity itself.

All times are `time.monotonic_ns`. A row of a device carries the time at which the recorder turned to that device.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from moecap.records import HostSample
from moecap.telemetry.base import (
    QUANTITIES,
    DeviceSampler,
    Reading,
    Sampler,
    Telemetry,
    make_device_samplers,
    make_samplers,
)
from moecap.telemetry.devicelog import unknown_of_devices
from moecap.telemetry.devices import Devices

STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cadence:
    """Absolute deadlines: sample k is due at start + k periods, however long the samples before it took."""

    start_ns: int
    period_ns: int

    def due_ns(self, index: int) -> int:
        """When sample `index` is due."""
        return self.start_ns + index * self.period_ns

    def next_index(self, index: int, now_ns: int) -> int:
        """The sample after `index`; those whose time has passed are skipped, never made up for in a burst."""
        return max(index + 1, -(-(now_ns - self.start_ns) // self.period_ns))

    def is_late(self, index: int, now_ns: int) -> bool:
        """Whether sample `index`, taken now, is more than half a period late."""
        return now_ns - self.due_ns(index) > self.period_ns / 2


class Recorder:
    """Records this host, and devices of it, between `start` and `stop`, any number of times.

    The first sample is taken before `start` returns, the last one when `stop` was called, so that a recording spans
    whatever lies between.
    """

    def __init__(
        self,
        samplers: Sequence[Sampler] | None = None,
        *,
        device_samplers: Sequence[DeviceSampler] | None = None,
        hz: float = 10.0,
        host: str | None = None,
    ) -> None:
        """By default the samplers of DEFAULT_SAMPLERS and DEFAULT_DEVICE_SAMPLERS, and this machine's host name."""
        if hz <= 0:
            raise ValueError(f"hz must be above 0, got {hz}")
        self._samplers = make_samplers() if samplers is None else list(samplers)
        self._device_samplers = device_samplers
        self._period_ns = round(1e9 / hz)
        self._host = host or socket.gethostname()
        self._recording: _Recording | None = None

    def start(self, engine_pid: int | None = None, device_uuids: Sequence[str] = ()) -> None:
        """Open the samplers, take the first sample, go on in the background. RuntimeError when it runs already."""
        if self._recording is not None:
            raise RuntimeError("the recorder is running already")
        if device_uuids and self._device_samplers is None:
            self._device_samplers = make_device_samplers()
        for sampler in self._samplers:
            sampler.open(engine_pid)
        devices = Devices(self._device_samplers or (), device_uuids)
        self._recording = _Recording(self._samplers, devices, self._period_ns, self._host)

    def stop(self) -> Telemetry:
        """Take one last sample and hand over. RuntimeError when nothing was started."""
        if self._recording is None:
            raise RuntimeError("the recorder was not started")
        recording, self._recording = self._recording, None
        return recording.finish()


class _Recording:
    """What one start-to-stop has gathered, and the thread that gathers it."""

    def __init__(self, samplers: Sequence[Sampler], devices: Devices, period_ns: int, host: str) -> None:
        self._samplers, self._devices, self._host = samplers, devices, host
        self._samples: list[HostSample] = []
        self._nulls: dict[str, tuple[str, int]] = {}
        self._late = self._skipped = 0
        self._cpu_s: dict[str, float] = {}
        self._stopping = threading.Event()
        self._began_s = time.thread_time()
        self._cadence = Cadence(start_ns=time.monotonic_ns(), period_ns=period_ns)
        self._take(self._cadence.start_ns, edge=True)
        self._total_cpu_s = time.thread_time() - self._began_s
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def finish(self) -> Telemetry:
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_S)
        unknown = self._unknown()
        if self._thread.is_alive():  # it may still hold the devices: they stay open
            unknown["last_sample"] = f"a sampler still hung {STOP_TIMEOUT_S:.0f} s after the end"
        else:
            self._devices.close()
        logs = list(self._devices.logs.values())
        return Telemetry(
            samples=tuple(self._samples), stats=self._stats(sum(map(len, logs))), unknown=unknown,
            device_samples=tuple(chain.from_iterable(log.samples() for log in logs)),
            device_facts=dict(self._devices.facts),
        )  # fmt: skip

    def _stats(self, device_samples: int) -> dict[str, Any]:
        wall_s = (time.monotonic_ns() - self._cadence.start_ns) / 1e9
        return {
            "asked_period_s": self._cadence.period_ns / 1e9,
            "samples": len(self._samples),
            "late_samples": self._late,
            "skipped_samples": self._skipped,
            "device_samples": device_samples,
            "wall_s": wall_s,
            "cpu_s": self._total_cpu_s,
            "cpu_share": self._total_cpu_s / wall_s,
            "cpu_s_by_sampler": dict(self._cpu_s),
        }

    def _run(self) -> None:
        index = 0
        while True:
            following = self._cadence.next_index(index, time.monotonic_ns())
            self._skipped += following - index - 1
            index = following
            if self._stopping.wait(max(0, self._cadence.due_ns(index) - time.monotonic_ns()) / 1e9):
                break
            now_ns = time.monotonic_ns()
            self._late += self._cadence.is_late(index, now_ns)
            self._take(now_ns, edge=False)
        self._take(time.monotonic_ns(), edge=True)
        self._total_cpu_s += time.thread_time()

    def _take(self, now_ns: int, *, edge: bool) -> None:
        self._charged_s = time.thread_time()
        values: dict[str, Any] = {}
        for sampler in self._samplers:
            reading = _guarded(sampler, now_ns, edge=edge)
            self._charge(sampler)
            values.update(reading.values)
            for quantity, why in reading.unknown.items():
                self._nulls[quantity] = (why, self._nulls.get(quantity, ("", 0))[1] + 1)
        known: dict[str, Any] = dict.fromkeys(QUANTITIES) | values
        self._samples.append(HostSample(time_ns=now_ns, host=self._host, **known))
        self._devices.take(edge=edge, charge=self._charge)

    def _charge(self, sampler: object) -> None:
        """CPU time since the last charge is this sampler's."""
        now_s, before_s = time.thread_time(), self._charged_s
        name = type(sampler).__name__
        self._cpu_s[name] = self._cpu_s.get(name, 0.0) + now_s - before_s
        self._charged_s = now_s

    def _unknown(self) -> dict[str, str]:
        covered = {quantity for sampler in self._samplers for quantity in sampler.quantities}
        unasked = {quantity: "no sampler was asked for it" for quantity in QUANTITIES if quantity not in covered}
        known = {name: sum(getattr(one, name) is not None for one in self._samples) for name in self._nulls}
        nulls = {
            quantity: f"{count} of {count + known[quantity]} samples: {why}" if known[quantity] else why
            for quantity, (why, count) in self._nulls.items()
        }
        return unasked | nulls | unknown_of_devices({uuid: log.unknown() for uuid, log in self._devices.logs.items()})


def _guarded(sampler: Sampler, now_ns: int, *, edge: bool) -> Reading:
    """The seam that keeps a recording alive: whatever a sampler lets escape makes its quantities unknown."""
    try:
        return sampler.sample(now_ns, edge=edge)
    except Exception as error:  # noqa: BLE001 - a sampler may be anybody's; the reason is kept in the record
        return Reading(unknown=dict.fromkeys(sampler.quantities, f"{type(error).__name__}: {error}"))
