"""How late the client itself was: what a busy event loop adds to every time that it takes is not the server's.

A coroutine sleeps PERIOD_S and measures by how much it woke too late: so late may any event be seen. An idle loop shows
up to 1 ms, the resolution of its timers. It judges nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from moecap.records import ClientRecord

PERIOD_S = 0.005


class ClientDelay:
    """Measures the loop and the thread that it is made in, until `record`."""

    def __init__(self) -> None:
        self._lags_ns: list[int] = []
        self._began_ns, self._cpu_s = time.monotonic_ns(), time.thread_time()
        self._task = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            due_ns = time.monotonic_ns() + round(1e9 * PERIOD_S)
            await asyncio.sleep(PERIOD_S)
            self._lags_ns.append(time.monotonic_ns() - due_ns)

    def record(self, send_delays_ns: Sequence[int]) -> ClientRecord:
        """Stop, and say what was seen; `send_delays_ns`: sent - scheduled of every request that had a time."""
        self._task.cancel()
        lag, delay = _percentiles_s(self._lags_ns), _percentiles_s(send_delays_ns)
        return ClientRecord(
            loop_lag_p50_s=lag[0], loop_lag_p99_s=lag[1], loop_lag_max_s=lag[2], loop_lag_samples=len(self._lags_ns),
            send_delay_p50_s=delay[0], send_delay_p99_s=delay[1], send_delay_max_s=delay[2],
            cpu_s=time.thread_time() - self._cpu_s, wall_s=(time.monotonic_ns() - self._began_ns) / 1e9,
        )  # fmt: skip


def _percentiles_s(times_ns: Sequence[int]) -> tuple[float | None, float | None, float | None]:
    """p50, p99 and the largest, in seconds; None without any."""
    if not times_ns:
        return None, None, None
    p50, p99, largest = np.percentile(np.array(times_ns), [50, 99, 100]) / 1e9
    return float(p50), float(p99), float(largest)
