"""Replays given samples, so that everything behind telemetry can be tried without counters. It reads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from moecap.records import DeviceFacts, DeviceSample, HostSample
from moecap.telemetry.base import DEVICE_QUANTITIES, QUANTITIES, DeviceSampler, Reading, Sampler

NOT_GIVEN = "the replayed samples don't hold it"


class FakeSampler(Sampler):
    """Gives the quantities of `samples` one after the other, then those of the last one again and again."""

    quantities = QUANTITIES

    def __init__(self, samples: Sequence[HostSample] = ()) -> None:
        self._given = [{name: getattr(sample, name) for name in QUANTITIES} for sample in samples] or [{}]

    def open(self, engine_pid: int | None) -> None:
        """From the first again."""
        self._replay = _endless(self._given)

    def sample(self, now_ns: int, *, edge: bool = True) -> Reading:
        """The next ones, whatever the time."""
        return _reading(next(self._replay), QUANTITIES)


class FakeDeviceSampler(DeviceSampler):
    """As FakeSampler, of the devices that `samples` are of; `facts` is how they are set up."""

    quantities = DEVICE_QUANTITIES

    def __init__(self, samples: Sequence[DeviceSample] = (), facts: Mapping[str, DeviceFacts] | None = None) -> None:
        self._facts = facts or {}
        self._given: dict[str, list[dict[str, Any]]] = {}
        for sample in samples:
            given = {name: getattr(sample, name) for name in DEVICE_QUANTITIES}
            self._given.setdefault(sample.device_id, []).append(given)

    def open(self, device_uuids: Sequence[str]) -> Mapping[str, str]:
        """From the first again."""
        self._replays = {uuid: _endless(given) for uuid, given in self._given.items()}
        return {uuid: "the replayed samples know no such device" for uuid in device_uuids if uuid not in self._given}

    def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
        """The next ones, whatever the time."""
        return _reading(next(self._replays[device_uuid]), DEVICE_QUANTITIES)

    def facts(self, device_uuid: str) -> DeviceFacts | None:
        """As given."""
        return self._facts.get(device_uuid)

    def close(self) -> None:
        """Nothing was taken."""


def _endless(given: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return chain(given, repeat(given[-1]))


def _reading(given: Mapping[str, Any], quantities: Sequence[str]) -> Reading:
    values = {name: value for name, value in given.items() if value is not None}
    return Reading(values=values, unknown={name: NOT_GIVEN for name in quantities if name not in values})
