"""Samplers read quantities of this host; a Recorder asks them on a fixed cadence in a thread of its own.

Nothing here knows an engine, a metric or a store. A quantity that can't be read is null in its sample, and the
recording says why; it never ends the recording. All times are `time.monotonic_ns`.
"""

from __future__ import annotations

import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from moecap.records import DeviceFacts, DeviceSample, HostSample
from moecap.registry import resolve
from moecap.telemetry import SAMPLERS

DEFAULT_SAMPLERS = ("host", "rapl")
STOP_TIMEOUT_S = 10.0
QUANTITIES = tuple(f.name for f in fields(HostSample) if f.name not in ("time_ns", "host"))
"""What a sample holds beside its time and its host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one sampler saw at one time. Names are fields of HostSample."""

    values: Mapping[str, float]
    unknown: Mapping[str, str]
    """Quantity that the sampler stands for but couldn't read -> why."""


class Sampler(ABC):
    """One source of quantities."""

    quantities: tuple[str, ...]
    """Fields of HostSample that it stands for."""

    @abstractmethod
    def open(self, engine_pid: int | None) -> None:
        """Prepare for a new recording, of this engine process if there is one."""

    @abstractmethod
    def sample(self, now_ns: int) -> Reading:
        """What can be read now. `now_ns` is the time that the sample will carry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """A finished recording."""

    samples: tuple[HostSample, ...]
    stats: dict[str, Any]
    """asked_period_s, samples, late_samples (taken over half a period late), skipped_samples (left out because the one
    before took too long), cpu_s (used by the recorder itself)."""
    unknown: dict[str, str]
    """Quantity that is null in some samples or all -> why, and in how many; those of devices as
    `devices.<quantity>`."""
    device_samples: tuple[DeviceSample, ...] = ()
    device_facts: dict[str, DeviceFacts] = field(default_factory=dict)
    """UUID -> how it was set up."""


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


def read_each(
    readers: Mapping[str, Callable[[], float]], unreadable: type[Exception] | tuple[type[Exception], ...]
) -> Reading:
    """Every quantity by itself: one whose reader raises one of `unreadable` is unknown for that reason."""
    values, unknown = {}, {}
    for quantity, read in readers.items():
        try:
            values[quantity] = read()
        except unreadable as error:
            unknown[quantity] = str(error) or type(error).__name__
    return Reading(values=values, unknown=unknown)


def make_samplers(names: Sequence[str] = DEFAULT_SAMPLERS) -> list[Sampler]:
    """Samplers by their names in the registry. ConfigError for an unknown one."""
    return [resolve(SAMPLERS, "moecap.samplers", name)() for name in names]


class Recorder:
    """Records this host between `start` and `stop`, any number of times.

    The first sample is taken before `start` returns, the last one when `stop` was called, so that a recording spans
    whatever lies between.
    """

    def __init__(self, samplers: Sequence[Sampler] | None = None, *, hz: float = 10.0, host: str | None = None) -> None:
        """By default the samplers of DEFAULT_SAMPLERS, and this machine's host name."""
        if hz <= 0:
            raise ValueError(f"hz must be above 0, got {hz}")
        self._samplers = make_samplers() if samplers is None else list(samplers)
        self._period_ns = round(1e9 / hz)
        self._host = host or socket.gethostname()
        self._recording: _Recording | None = None

    def start(self, engine_pid: int | None = None, device_uuids: Sequence[str] = ()) -> None:
        """Open the samplers, take the first sample, go on in the background. RuntimeError when it runs already."""
        if self._recording is not None:
            raise RuntimeError("the recorder is running already")
        for sampler in self._samplers:
            sampler.open(engine_pid)
        self._recording = _Recording(self._samplers, self._period_ns, self._host)

    def stop(self) -> Telemetry:
        """Take one last sample and hand over. RuntimeError when nothing was started."""
        if self._recording is None:
            raise RuntimeError("the recorder was not started")
        recording, self._recording = self._recording, None
        return recording.finish()


class _Recording:
    """What one start-to-stop has gathered, and the thread that gathers it."""

    def __init__(self, samplers: Sequence[Sampler], period_ns: int, host: str) -> None:
        self._samplers, self._host = samplers, host
        self._samples: list[HostSample] = []
        self._nulls: dict[str, tuple[str, int]] = {}
        self._late = self._skipped = 0
        self._stopping = threading.Event()
        began_s = time.thread_time()
        self._cadence = Cadence(start_ns=time.monotonic_ns(), period_ns=period_ns)
        self._take(self._cadence.start_ns)
        self._cpu_s = time.thread_time() - began_s
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def finish(self) -> Telemetry:
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_S)
        unknown = self._unknown()
        if self._thread.is_alive():
            unknown["last_sample"] = f"a sampler still hung {STOP_TIMEOUT_S:.0f} s after the end"
        stats = {
            "asked_period_s": self._cadence.period_ns / 1e9,
            "samples": len(self._samples),
            "late_samples": self._late,
            "skipped_samples": self._skipped,
            "cpu_s": self._cpu_s,
        }
        return Telemetry(samples=tuple(self._samples), stats=stats, unknown=unknown)

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
            self._take(now_ns)
        self._take(time.monotonic_ns())
        self._cpu_s += time.thread_time()

    def _take(self, now_ns: int) -> None:
        values: dict[str, float] = {}
        for sampler in self._samplers:
            reading = _guarded(sampler, now_ns)
            values.update(reading.values)
            for quantity, why in reading.unknown.items():
                self._nulls[quantity] = (why, self._nulls.get(quantity, ("", 0))[1] + 1)
        known: dict[str, Any] = dict.fromkeys(QUANTITIES) | values
        self._samples.append(HostSample(time_ns=now_ns, host=self._host, **known))

    def _unknown(self) -> dict[str, str]:
        covered = {quantity for sampler in self._samplers for quantity in sampler.quantities}
        unasked = {quantity: "no sampler was asked for it" for quantity in QUANTITIES if quantity not in covered}
        total = len(self._samples)
        return unasked | {
            quantity: why if count == total else f"{count} of {total} samples: {why}"
            for quantity, (why, count) in self._nulls.items()
        }


def _guarded(sampler: Sampler, now_ns: int) -> Reading:
    """The seam that keeps a recording alive: whatever a sampler lets escape makes its quantities unknown."""
    try:
        return sampler.sample(now_ns)
    except Exception as error:  # noqa: BLE001 - a sampler may be anybody's; the reason is kept in the record
        return Reading(values={}, unknown=dict.fromkeys(sampler.quantities, f"{type(error).__name__}: {error}"))
