"""What else kept this machine's CPUs busy for a while: what is measured beside other work is too slow.

It judges nothing. Processes that this one started, and those that they started, are no others: an engine may be many.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

BUSY = ("user", "nice", "system", "irq", "softirq")
"""Kinds of CPU time that keep a CPU from idling; what runs niced is counted apart from `user`."""


DISTURBING_SHARE = 0.2
"""Of the CPUs in use, busy with other work, above which what is measured on them is doubtful."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Means over the while, in CPUs."""

    others: float
    """Busy with other processes."""
    stolen: float
    """Given to other machines by a hypervisor."""

    def disturbs(self, num_cpus: int) -> bool:
        """Whether it was too much beside a measurement on so many CPUs."""
        return self.others + self.stolen > DISTURBING_SHARE * num_cpus

    @property
    def told(self) -> str:
        """In words."""
        return f"meanwhile other processes kept {self.others:.2f} CPUs busy and {self.stolen:.2f} were stolen"


class OtherLoad:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._start = self._read()

    def seen(self) -> Seen:
        """Since then."""
        wall_s, busy_s, stolen_s = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return Seen(others=max(0.0, busy_s) / wall_s, stolen=stolen_s / wall_s)

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Wall seconds; CPU seconds of other processes; CPU seconds that a hypervisor gave to other machines."""
        host = psutil.cpu_times()
        busy_s = sum(getattr(host, kind, 0.0) for kind in BUSY) - family_cpu_s()
        return time.monotonic(), busy_s, getattr(host, "steal", 0.0)


def family_cpu_s() -> float:
    """CPU seconds of this process and all its descendants, those that have ended and were waited for included.

    Descendants are read before their ancestors: one that ends meanwhile is found in what its parent waited for.
    """
    me = psutil.Process()
    return sum(map(_cpu_s, (*reversed(me.children(recursive=True)), me)))


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0  # it ended since the family was looked up
    waited_s = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return float(times.user + times.system + waited_s)
