"""Samplers read quantities of this host, or of its accelerators; this is what each of them is, and what comes out.

Nothing here knows an engine, a metric or a store. A quantity that can't be read is null in its sample, and the
recording says why; it never ends the recording. All times are `time.monotonic_ns`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from moecap.records import DeviceFacts, DeviceSample, HostSample
from moecap.registry import resolve
from moecap.telemetry import DEVICE_SAMPLERS, SAMPLERS

DEFAULT_SAMPLERS = ("host", "rapl")
DEFAULT_DEVICE_SAMPLERS = ("nvml", "gpm", "amd")
QUANTITIES = tuple(f.name for f in fields(HostSample) if f.name not in ("time_ns", "host"))
"""What a sample holds beside its time and its host."""
DEVICE_QUANTITIES = tuple(f.name for f in fields(DeviceSample) if f.name not in ("time_ns", "device_id"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one sampler saw at one time. Names are fields of HostSample, or of DeviceSample."""

    values: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Quantity that the sampler asked for but couldn't read -> why."""


NOTHING = Reading()
"""Nothing was due."""


class Sampler(ABC):
    """One source of quantities of this host."""

    quantities: tuple[str, ...]
    """Fields of HostSample that it stands for."""

    @abstractmethod
    def open(self, engine_pid: int | None) -> None:
        """Prepare for a new recording, of this engine process if there is one."""

    @abstractmethod
    def sample(self, now_ns: int, *, edge: bool = True) -> Reading:
        """What is due now; at an `edge`, the first or the last of a recording, all of it. `now_ns` is the time that the
        sample will carry."""


class DeviceSampler(ABC):
    """One source of quantities of accelerators."""

    quantities: tuple[str, ...]
    """Fields of DeviceSample that it stands for."""

    @abstractmethod
    def open(self, device_uuids: Sequence[str]) -> Mapping[str, str]:
        """Prepare for a new recording of these devices. The answer: those that it can't read -> why."""

    @abstractmethod
    def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
        """What is due now, of a device that it can read; at an `edge`, the first or the last of a recording, all that
        can be asked in a moment. What has a reason that can't change is told once and not asked again."""

    def facts(self, device_uuid: str) -> DeviceFacts | None:
        """How the device is set up; None: it is not this sampler's to say."""
        del device_uuid
        return None

    def busy(self, device_uuid: str) -> str | None:
        """What shows that somebody uses the device now; None: nothing does."""
        del device_uuid
        return None

    @abstractmethod
    def close(self) -> None:
        """Give back what `open` took, if it took anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """A finished recording."""

    samples: tuple[HostSample, ...]
    stats: dict[str, Any]
    """asked_period_s, samples, late_samples (taken over half a period late), skipped_samples (left out because the one
    before took too long), wall_s, cpu_s (used by the recorder's own thread), cpu_share (of one core), cpu_s_by_sampler,
    device_samples."""
    unknown: dict[str, str]
    """Quantity that is null in some samples or all -> why, and in how many; those of devices as
    `devices.<quantity>`."""
    device_samples: tuple[DeviceSample, ...] = ()
    device_facts: dict[str, DeviceFacts] = field(default_factory=dict)
    """UUID -> how it was set up."""


def read_each(
    readers: Mapping[str, Callable[[], Any]], unreadable: type[Exception] | tuple[type[Exception], ...]
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


def make_device_samplers(names: Sequence[str] = DEFAULT_DEVICE_SAMPLERS) -> list[DeviceSampler]:
    """As `make_samplers`, of devices."""
    return [resolve(DEVICE_SAMPLERS, "moecap.device_samplers", name)() for name in names]
