"""The host by procfs (through psutil): CPU, memory, the engine's resident memory, disk and network counters.

Counters count since boot and for the whole machine; resident memory sums the engine's process and its descendants,
so pages that they share count more than once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import psutil

from moecap.telemetry.base import Reading, Sampler, read_each

COUNTERS_NS = 1_000_000_000
"""Counters of disks and networks cost more than all the rest together, and any window is a difference of them."""
SLACK_NS = 20_000_000
"""What is due so soon is read now: a cadence of 10 Hz comes a little early at times."""
FAMILY_REFRESH_NS = 5_000_000_000
"""How often the engine's descendants are looked up: that scans every process of the machine."""
LOOPBACK = ("lo", "lo0")


class UnreadableError(Exception):
    """A quantity that this host doesn't tell, and why."""


class HostSampler(Sampler):
    """One reading costs a fraction of a millisecond."""

    quantities = (
        "cpu_utilisation", "memory_used_bytes", "engine_rss_bytes", "disk_read_bytes", "disk_written_bytes",
        "network_sent_bytes", "network_received_bytes",
    )  # fmt: skip

    def open(self, engine_pid: int | None) -> None:
        """Utilisation is known from the second sample on."""
        self._engine_pid = engine_pid
        self._family: list[psutil.Process] = []
        self._family_due_ns = 0
        self._counters_due_ns = 0
        self._busy_s: tuple[float, float] | None = None

    def sample(self, now_ns: int, *, edge: bool = True) -> Reading:
        """Each quantity by itself; counters once a second."""
        readers: dict[str, Callable[[], float]] = {
            "cpu_utilisation": self._cpu_utilisation,
            "memory_used_bytes": lambda: psutil.virtual_memory().used,
            "engine_rss_bytes": lambda: self._engine_rss_bytes(now_ns),
        }
        if edge or now_ns + SLACK_NS >= self._counters_due_ns:
            self._counters_due_ns = now_ns + COUNTERS_NS
            disk, network = cache(_disk_bytes), cache(_network_bytes)  # two quantities each, one look
            readers |= {
                "disk_read_bytes": lambda: disk()[0],
                "disk_written_bytes": lambda: disk()[1],
                "network_sent_bytes": lambda: network()[0],
                "network_received_bytes": lambda: network()[1],
            }
        return read_each(readers, (UnreadableError, psutil.Error, OSError))

    def _cpu_utilisation(self) -> float:
        """Busy share of all CPUs' time since the previous sample; waiting for I/O is idle, stolen time is busy."""
        times = psutil.cpu_times()
        guest_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # already part of user and nice
        total_s = sum(times) - guest_s
        busy_s = total_s - times.idle - getattr(times, "iowait", 0.0)
        previous, self._busy_s = self._busy_s, (busy_s, total_s)
        if previous is None:
            raise UnreadableError("utilisation needs an earlier sample")
        if total_s <= previous[1]:
            raise UnreadableError("the kernel's CPU clock did not tick since the previous sample")
        return min(1.0, max(0.0, (busy_s - previous[0]) / (total_s - previous[1])))

    def _engine_rss_bytes(self, now_ns: int) -> int:
        if self._engine_pid is None:
            raise UnreadableError("no engine process was named")
        if now_ns >= self._family_due_ns:
            engine = psutil.Process(self._engine_pid)
            self._family = [engine, *engine.children(recursive=True)]
            self._family_due_ns = now_ns + FAMILY_REFRESH_NS
        engine, *descendants = self._family
        return engine.memory_info().rss + sum(_rss_bytes(process) for process in descendants)


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0  # it ended since the family was looked up


def _disk_bytes() -> tuple[int, int]:
    """Read and written, all disks."""
    counters = psutil.disk_io_counters(nowrap=False)
    if counters is None:
        raise UnreadableError("this host shows no disk")
    return counters.read_bytes, counters.write_bytes


def _network_bytes() -> tuple[int, int]:
    """Sent and received, all interfaces but the loopback."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    outside = [one for name, one in counters.items() if name not in LOOPBACK]
    return sum(one.bytes_sent for one in outside), sum(one.bytes_recv for one in outside)
