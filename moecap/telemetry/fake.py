"""Replays given samples, so that everything behind telemetry can be tried without counters. It reads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat

from moecap.records import HostSample
from moecap.telemetry.base import QUANTITIES, Reading, Sampler

NOT_GIVEN = "the replayed samples don't hold it"


class FakeSampler(Sampler):
    """Gives the quantities of `samples` one after the other, then those of the last one again and again."""

    quantities = QUANTITIES

    def __init__(self, samples: Sequence[HostSample] = ()) -> None:
        self._given = [{name: getattr(sample, name) for name in QUANTITIES} for sample in samples] or [{}]

    def open(self, engine_pid: int | None) -> None:
        """From the first again."""
        self._replay = chain(self._given, repeat(self._given[-1]))

    def sample(self, now_ns: int) -> Reading:
        """The next ones, whatever the time."""
        values = {name: value for name, value in next(self._replay).items() if value is not None}
        return Reading(values=values, unknown={name: NOT_GIVEN for name in QUANTITIES if name not in values})
