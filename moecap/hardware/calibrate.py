"""What the CPUs, their memory and the local disk of this machine really reach: measured peaks, a few seconds in all.

Every peak is the fastest of many calls of the fastest of several kernels, so that real work stays below it. The
kernels are in `cpu_kernels` and `ssd`, the repetition is in `timing`; torch is loaded when calibration starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psutil

from moecap.errors import CalibrationError
from moecap.hardware.otherload import OtherLoad
from moecap.hardware.ssd import ssd_kernels, why_not_direct
from moecap.hardware.timing import ROUNDS, Kernel, PeakRate, affordable_sizes, peak_rates
from moecap.records import Peaks, Rates

DTYPES = ("float32", "bfloat16", "int8")
CPU_SYSFS = Path("/sys/devices/system/cpu")
USUAL_CACHE_BYTES = 32 * 2**20
"""Taken for the last-level cache where the system doesn't say."""
CACHES_PER_ARRAY = 4
MEMORY_SHARE = 1 / 16
"""Of the available memory, at most, for one array."""
SATURATING = 3
"""All threads, half and a quarter of them are tried for every peak."""
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
    seconds: float = 4.0,
    *,
    sizes: CalibrationSizes | None = None,
) -> Rates:
    """What `num_threads` CPU threads of this machine, its memory and the disk under `scratch_dir` reach.

    Peaks: bytes read per second of memory; FLOP/s of `float32`, `bfloat16`, and of `int8` where torch has a fast
    product for it; bytes read per second of `ssd`, unless O_DIRECT can't reach a disk there. `spread` has the keys
    `memory`, each dtype and `ssd`. Measured beside them: memory reads by number of threads, and copies. Set-up comes
    on top of `seconds`: about as long again. Raises CalibrationError when something can't be measured.
    """
    if num_threads < 1:
        raise CalibrationError(f"can't calibrate {num_threads} threads: at least one is needed")
    sizes = sizes or CalibrationSizes(array_bytes=_array_bytes())
    others = OtherLoad()
    unknown = {}
    try:
        no_ssd = why_not_direct(Path(scratch_dir))
        with _kernels(num_threads, sizes, None if no_ssd else Path(scratch_dir)) as kernels:
            found = peak_rates(kernels, seconds)
    except (RuntimeError, MemoryError, OSError) as error:
        raise CalibrationError(f"calibration of {num_threads} CPU threads failed: {error}") from error
    if "int8" in found and found["int8"].work_per_s < found["float32"].work_per_s / 2:
        del found["int8"]  # a plain loop, many times slower: it says nothing about the hardware
    if "int8" not in found:
        unknown["int8"] = "torch has no fast and exact int8 matrix product for this CPU"
    if no_ssd:
        unknown["ssd"] = no_ssd
    seen = others.seen()
    rates = _as_rates(found, sizes, [seen.told, *([f"no ssd: {no_ssd}"] if no_ssd else [])], unknown)
    return replace(rates, disturbed=seen.told if seen.disturbs(num_threads) else "")


def thread_counts(num_threads: int) -> list[int]:
    """All of the threads, and half as many again and again down to one."""
    return [num_threads >> halvings for halvings in range(num_threads.bit_length())]


def last_level_cache_bytes(sysfs: Path = CPU_SYSFS) -> int | None:
    """All last-level caches of this machine together; None where the system doesn't say."""
    caches: dict[tuple[int, str], int] = {}
    for index in sysfs.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
        caches[level, (index / "shared_cpu_list").read_text().strip()] = int(size.removesuffix("K")) * 1024
    last = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == last) or None


@contextmanager
def _kernels(num_threads: int, sizes: CalibrationSizes, disk: Path | None) -> Iterator[Mapping[str, Sequence[Kernel]]]:
    """Quantity -> kernels that could reach its peak. Few threads may saturate the memory, and wait less for each other
    on a busy machine; a few of many only show how much one thread draws, in fewer kernels as they take long."""
    from moecap.hardware import cpu_kernels  # noqa: PLC0415 - loads torch, which the command line must not

    with cpu_kernels.keeping_threads(), ExitStack() as files:
        streams, counts = cpu_kernels.Streams(sizes.array_bytes), thread_counts(num_threads)
        many = counts[:SATURATING]
        kernels = {_reads(threads): streams.reads(threads, writing=threads in many) for threads in counts}
        kernels["copy"] = [streams.copy(threads) for threads in many]
        for dtype in DTYPES:
            if dtype != "int8" or cpu_kernels.int8_is_exact():
                kernel_of = partial(cpu_kernels.gemm_kernel, dtype)
                found = affordable_sizes(partial(kernel_of, num_threads), sizes.gemm_sizes, GEMM_CALL_S)
                kernels[dtype] = [kernel_of(threads, size) for threads in many for size in found]
        if disk is not None:
            kernels["ssd"] = files.enter_context(ssd_kernels(disk, sizes.file_bytes))
        yield kernels


def _reads(threads: int) -> str:
    """Name of the memory reads by so many threads."""
    return f"read on {threads}"


def _array_bytes() -> int:
    wanted = CACHES_PER_ARRAY * (last_level_cache_bytes() or USUAL_CACHE_BYTES)
    return int(min(wanted, psutil.virtual_memory().available * MEMORY_SHARE))


def _as_rates(
    found: Mapping[str, PeakRate], sizes: CalibrationSizes, remarks: Sequence[str], unknown: Mapping[str, str]
) -> Rates:
    reads = {int(name.rpartition(" ")[2]): peak for name, peak in found.items() if name.startswith("read on ")}
    memory = max(reads.values(), key=lambda peak: peak.work_per_s)
    peaking = {"memory": memory, **{name: found[name] for name in (*DTYPES, "ssd") if name in found}}
    peaks = Peaks(
        source="calibrated",
        memory_bytes_per_s=memory.work_per_s,
        flops_per_s={dtype: found[dtype].work_per_s for dtype in DTYPES if dtype in found},
        tier_bytes_per_s={"ssd": found["ssd"].work_per_s} if "ssd" in found else {},
        method="; ".join([_method(peaking, sizes), *remarks]),
        spread={quantity: peak.spread for quantity, peak in peaking.items()},
    )
    by_threads = [peak.as_rate("host_read_bytes_per_s", threads=threads) for threads, peak in sorted(reads.items())]
    return Rates(peaks=peaks, measured=(*by_threads, found["copy"].as_rate("copy_bytes_per_s")), unknown=unknown)


def _method(found: Mapping[str, PeakRate], sizes: CalibrationSizes) -> str:
    best = ", ".join(f"{quantity}: {peak.kernel}" for quantity, peak in found.items())
    return (
        f"fastest call of the fastest kernel in {ROUNDS} rounds ({best}); memory: bytes read by sum, dot, copy and "
        f"triad over float32 arrays of {sizes.array_bytes / 2**20:.0f} MiB; dtypes: square torch matrix products; "
        f"ssd: O_DIRECT reads of {sizes.file_bytes / 2**20:.0f} MiB"
    )
