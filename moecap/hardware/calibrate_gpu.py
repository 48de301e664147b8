"""What GPUs really reach: measured peaks and launch costs, about ten seconds each, in a process of its own.

`calibrate_gpus` starts that process (this module run as a program) on the devices of the given UUIDs, so that no CUDA
context stays where it was called. Kernels are in `gpu_kernels`, repetition in `timing`; times are CUDA events.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import TypeAdapter

from moecap.hardware.calibrated import failed
from moecap.hardware.programs import run_programs
from moecap.hardware.timing import ROUNDS, Kernel, PeakRate, Timer, affordable_sizes, lasting, peak_rates
from moecap.records import Peaks, Rates, to_jsonable

DTYPES = ("float32", "tfloat32", "bfloat16", "float16", "float8", "int8")
SIZES = (4096, 8192, 16384)
GEMM_S = 0.05
"""Longest matrix product that is worth its time."""
CALL_S = 0.01
"""What is timed as one takes so long: queueing it, about 10 us, hardly counts."""
WAKE_S = 0.5
"""Clocks rise while a device works."""
ARRAY_BYTES = 2 * 2**30
ARRAY_SHARE = 1 / 8
"""Of the free device memory, at most, for one array."""
TRANSFER_BYTES = 256 * 2**20
IDLE_BYTES = 2 * 2**30
"""Of a device that nobody uses, at most in use: by its driver and by this process."""
START_S = 90.0
DEVICE_S = 60.0
"""Most for the process to start, and for each device; it takes a fraction of that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSizes:
    """How large the measured work is."""

    array_bytes: int
    gemm_sizes: tuple[int, ...] = SIZES
    transfer_bytes: int = TRANSFER_BYTES


def calibrate_gpus(uuids: Sequence[str]) -> list[Rates]:
    """What each of these devices reaches, one measured after the other. Raises CalibrationError."""
    limit_s = START_S + DEVICE_S * len(uuids)
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(uuids)}
    printed = run_programs(__name__, [[str(len(uuids))]], [environment], limit_s)
    found: list[Rates] = TypeAdapter(list[Rates]).validate_python(json.loads(printed))
    return found


def gpu_rates(device: str, clock: Timer, seconds: float, sizes: GpuSizes) -> Rates:
    """What torch's current device reaches.

    Peaks: bytes read per second of its memory, FLOP/s by dtype, bytes per second that it draws from the `host`.
    Measured beside them: copy and triad (bytes read and written), both directions of the link, cost of launches.
    """
    from moecap.hardware import gpu_kernels  # noqa: PLC0415 - loads torch

    streams = gpu_kernels.Streams(sizes.array_bytes, device)
    raw = {"memory": streams.reads(), "copy": [streams.copy()], "triad": [streams.triad()]}
    unknown = {}
    for dtype in DTYPES:
        kernel_of = partial(gpu_kernels.gemm_kernel, dtype, device)
        try:
            usable = affordable_sizes(kernel_of, sizes.gemm_sizes, GEMM_S, clock)
            raw[dtype] = [kernel_of(size) for size in usable]
            for kernel in raw[dtype]:
                kernel.call()
        except (RuntimeError, AttributeError, NotImplementedError) as error:  # no unit, or no product in this torch
            raw.pop(dtype, None)
            unknown[dtype] = f"torch has no such matrix product here: {str(error).partition(chr(10))[0]}"
    if device != "cpu":
        both = gpu_kernels.transfer_kernels(sizes.transfer_bytes, device) | gpu_kernels.launch_kernels()
        raw |= {name: [kernel] for name, kernel in both.items()}
    kernels = {name: [lasting(kernel, CALL_S, clock) for kernel in some] for name, some in raw.items()}
    _wake(kernels, clock)
    return rates_of(peak_rates(kernels, seconds, clock), unknown, sizes)


def rates_of(found: Mapping[str, PeakRate], unknown: Mapping[str, str], sizes: GpuSizes) -> Rates:
    """What was found as the record of it."""
    peaking = {name: found[name] for name in ("memory", *DTYPES) if name in found}
    if "h2d" in found:
        peaking["host"] = found["h2d"]
    peaks = Peaks(
        source="calibrated",
        memory_bytes_per_s=found["memory"].work_per_s,
        flops_per_s={name: peak.work_per_s for name, peak in peaking.items() if name in DTYPES},
        tier_bytes_per_s={"host": found["h2d"].work_per_s} if "h2d" in found else {},
        method=_method(peaking, sizes),
        spread={name: peak.spread for name, peak in peaking.items()},
    )
    rates = [found[name].as_rate(f"{name}_bytes_per_s") for name in ("copy", "triad", "h2d", "d2h") if name in found]
    launches = {"kernel": "kernel_launch_s", "graph": "graph_launch_s", "graph_kernel": "graph_kernel_s"}
    costs = [found[name].as_cost(quantity) for name, quantity in launches.items() if name in found]
    return Rates(peaks=peaks, measured=(*rates, *costs), unknown=unknown)


def _method(peaking: Mapping[str, PeakRate], sizes: GpuSizes) -> str:
    best = ", ".join(f"{quantity}: {peak.kernel}" for quantity, peak in peaking.items())
    return (
        f"fastest call of the fastest kernel in {ROUNDS} rounds ({best}), by CUDA events; memory: bytes read by sum, "
        f"dot and mv over float32 arrays of {sizes.array_bytes / 2**20:.0f} MiB; dtypes: square torch matrix products "
        f"(float8: e4m3, fast accumulation); host: copies from pinned memory"
    )


def _wake(kernels: Mapping[str, Sequence[Kernel]], clock: Timer) -> None:
    until_s = clock() + WAKE_S
    while clock() < until_s:
        for kernel in kernels["memory"]:
            kernel.call()


class EventClock:
    """Seconds by CUDA events on the current stream: reading it waits for all that was queued before."""

    def __init__(self) -> None:
        self._first = self._now()

    def __call__(self) -> float:
        """Since it was made."""
        return float(self._first.elapsed_time(self._now())) / 1e3

    @staticmethod
    def _now() -> Any:
        import torch  # noqa: PLC0415 - only where it measures

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()
        return event


def _main(count: int, seconds: float = 5.0) -> None:
    """Print the rates of the `count` devices that this process sees, as JSON."""
    import torch  # noqa: PLC0415 - in this process only

    if torch.cuda.device_count() != count:
        raise RuntimeError(f"torch {torch.__version__} sees {torch.cuda.device_count()} of {count} devices")
    rates = []
    for index in range(count):
        torch.cuda.set_device(index)
        free_bytes, all_bytes = torch.cuda.mem_get_info()
        if all_bytes - free_bytes > IDLE_BYTES:
            rates.append(failed(f"it is not idle: {(all_bytes - free_bytes) / 2**30:.1f} GiB of its memory are in use"))
            continue
        sizes = GpuSizes(array_bytes=int(min(ARRAY_BYTES, free_bytes * ARRAY_SHARE)))
        rates.append(gpu_rates(f"cuda:{index}", EventClock(), seconds, sizes))
        torch.cuda.empty_cache()
    print(json.dumps(to_jsonable(rates)))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
