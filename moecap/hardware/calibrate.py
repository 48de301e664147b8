"""What the CPUs, their memory and the local disk of this machine really reach: measured peaks, a few seconds in all.

Every peak is the fastest of many calls of the fastest of several kernels, so that real work stays below it. The
kernels are in `cpu_kernels` and `ssd`, the repetition is in `timing`; torch is loaded when calibration starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil

from moecap.errors import CalibrationError
from moecap.hardware.otherload import OtherLoad
from moecap.hardware.ssd import ssd_kernels, why_not_direct
from moecap.hardware.timing import ROUNDS, Kernel, PeakRate, Timer, fastest_s, peak_rates
from moecap.records import Peaks

DTYPES = ("float32", "bfloat16", "int8")
CPU_SYSFS = Path("/sys/devices/system/cpu")
USUAL_CACHE_BYTES = 32 * 2**20
"""Taken for the last-level cache where the system doesn't say."""
CACHES_PER_ARRAY = 4
MEMORY_SHARE = 1 / 16
"""Of the available memory, at most, for one array."""
GEMM_CALL_S = 0.05
"""Longest matrix product that is worth its time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSizes:
    """How large the measured work is."""

    array_bytes: int
    """Of one array that is streamed; several times the last-level cache."""
    gemm_sizes: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    """Square matrices, ascending; those that would take too long are left out."""
    file_bytes: int = 128 * 2**20


def calibrate_cpu(
    num_threads: int,
    scratch_dir: str | os.PathLike[str],
    seconds: float = 3.0,
    *,
    sizes: CalibrationSizes | None = None,
) -> Peaks:
    """Measured peaks of `num_threads` CPU threads of this machine and of the disk under `scratch_dir`.

    Bytes read per second of memory; FLOP/s of `float32`, `bfloat16`, and of `int8` where torch has a fast product
    for it; bytes read per second of `ssd`, unless O_DIRECT can't reach a disk there (`method` then says why).
    `spread` has the keys `memory`, each dtype and `ssd`. Set-up comes on top of `seconds`: about as long again.
    Raises CalibrationError when something can't be measured.
    """
    if num_threads < 1:
        raise CalibrationError(f"can't calibrate {num_threads} threads: at least one is needed")
    sizes = sizes or CalibrationSizes(array_bytes=_array_bytes())
    others = OtherLoad()
    try:
        no_ssd = why_not_direct(Path(scratch_dir))
        with _kernels(num_threads, sizes, None if no_ssd else Path(scratch_dir)) as kernels:
            found = peak_rates(kernels, seconds)
    except (RuntimeError, MemoryError, OSError) as error:
        raise CalibrationError(f"calibration of {num_threads} CPU threads failed: {error}") from error
    if "int8" in found and found["int8"].work_per_s < found["float32"].work_per_s / 2:
        del found["int8"]  # a plain loop, many times slower: it says nothing about the hardware
    return _as_peaks(found, [_method(found, sizes), others.seen().told, *([f"no ssd: {no_ssd}"] if no_ssd else [])])


def thread_counts(num_threads: int) -> list[int]:
    """All, half and a quarter of the threads: fewer may saturate the memory, and wait less for each other on a busy
    machine."""
    return sorted({num_threads, max(1, num_threads // 2), max(1, num_threads // 4)}, reverse=True)


def last_level_cache_bytes(sysfs: Path = CPU_SYSFS) -> int | None:
    """All last-level caches of this machine together; None where the system doesn't say."""
    caches: dict[tuple[int, str], int] = {}
    for index in sysfs.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
        caches[level, (index / "shared_cpu_list").read_text().strip()] = int(size.removesuffix("K")) * 1024
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or None


def affordable_sizes(
    kernel_of: Callable[[int], Kernel], sizes: Sequence[int], limit_s: float, timer: Timer = time.perf_counter
) -> list[int]:
    """Ascending sizes whose calls take at most `limit_s`, judged by the size before; always the first.

    Time grows with the cube of the size. A larger product comes closer to the peak, if there is time for it.
    """
    affordable = [sizes[0]]
    for previous, size in pairwise(sizes):
        kernel = kernel_of(previous)
        kernel.call()
        if fastest_s(kernel.call, 0.0, timer) * (size / previous) ** 3 > limit_s:
            break
        affordable.append(size)
    return affordable


@contextmanager
def _kernels(num_threads: int, sizes: CalibrationSizes, disk: Path | None) -> Iterator[Mapping[str, Sequence[Kernel]]]:
    """Quantity -> kernels that could reach its peak."""
    from moecap.hardware import cpu_kernels  # noqa: PLC0415 - loads torch, which the command line must not

    with cpu_kernels.keeping_threads(), ExitStack() as files:
        counts = thread_counts(num_threads)
        kernels = {"memory": cpu_kernels.read_kernels(sizes.array_bytes, counts)}
        for dtype in DTYPES:
            if dtype != "int8" or cpu_kernels.int8_is_exact():
                kernel_of = partial(cpu_kernels.gemm_kernel, dtype)
                found = affordable_sizes(partial(kernel_of, num_threads), sizes.gemm_sizes, GEMM_CALL_S)
                kernels[dtype] = [kernel_of(threads, size) for threads in counts for size in found]
        if disk is not None:
            kernels["ssd"] = files.enter_context(ssd_kernels(disk, sizes.file_bytes))
        yield kernels


def _array_bytes() -> int:
    wanted = CACHES_PER_ARRAY * (last_level_cache_bytes() or USUAL_CACHE_BYTES)
    return int(min(wanted, psutil.virtual_memory().available * MEMORY_SHARE))


def _as_peaks(found: Mapping[str, PeakRate], method: Sequence[str]) -> Peaks:
    return Peaks(
        source="calibrated",
        memory_bytes_per_s=found["memory"].work_per_s,
        flops_per_s={dtype: found[dtype].work_per_s for dtype in DTYPES if dtype in found},
        tier_bytes_per_s={"ssd": found["ssd"].work_per_s} if "ssd" in found else {},
        method="; ".join(method),
        spread={quantity: peak.spread for quantity, peak in found.items()},
    )


def _method(found: Mapping[str, PeakRate], sizes: CalibrationSizes) -> str:
    best = ", ".join(f"{quantity}: {peak.kernel}" for quantity, peak in found.items())
    return (
        f"fastest call of the fastest kernel in {ROUNDS} rounds ({best}); memory: bytes read by sum, dot, copy and "
        f"triad over float32 arrays of {sizes.array_bytes / 2**20:.0f} MiB; dtypes: square torch matrix products; "
        f"ssd: O_DIRECT reads of {sizes.file_bytes / 2**20:.0f} MiB"
    )
