"""Calibration on tiny sizes: what it hands over, and what its kernels count, against a slow way to the same result."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moecap.errors import CalibrationError
from moecap.hardware import calibrate, cpu_kernels, ssd
from moecap.hardware.calibrate import CalibrationSizes, calibrate_cpu, last_level_cache_bytes, thread_counts
from moecap.hardware.timing import Kernel
from moecap.records import Peaks, Rates

TINY = CalibrationSizes(array_bytes=2**18, gemm_sizes=(32, 64), file_bytes=2 * ssd.BLOCK_BYTES)


def peaks_of(rates: Rates) -> Peaks:
    assert rates.peaks is not None
    return rates.peaks


def test_calibration_hands_over_positive_peaks_with_a_spread_each(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    peaks = peaks_of(calibrate_cpu(1, tmp_path, seconds=0.02, sizes=TINY))
    assert peaks.source == "calibrated"
    assert peaks.memory_bytes_per_s is not None and peaks.memory_bytes_per_s > 0
    assert {"float32", "bfloat16"} <= set(peaks.flops_per_s) <= {"float32", "bfloat16", "int8"}
    assert set(peaks.spread) == {"memory", *peaks.flops_per_s, *peaks.tier_bytes_per_s}
    assert all(rate > 0 for rate in [*peaks.flops_per_s.values(), *peaks.tier_bytes_per_s.values()])
    assert all(spread >= 0 for spread in peaks.spread.values())
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []


def test_the_method_names_the_winning_kernels_and_what_ran_beside(tmp_path: Path) -> None:
    method = peaks_of(calibrate_cpu(1, tmp_path, seconds=0.02, sizes=TINY)).method
    assert "on 1 thread" in method
    assert "5 rounds" in method
    assert "other processes kept" in method


def test_without_direct_reads_ssd_is_left_out_and_the_method_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssd, "_filesystem", lambda folder: "tmpfs")
    rates = calibrate_cpu(1, tmp_path, seconds=0.02, sizes=TINY)
    peaks = peaks_of(rates)
    assert rates.unknown["ssd"] == f"{tmp_path} lies on tmpfs, in memory"
    assert peaks.tier_bytes_per_s == {} and "ssd" not in peaks.spread
    assert f"no ssd: {tmp_path} lies on tmpfs, in memory" in peaks.method


def test_int8_counts_only_where_its_product_is_exact_and_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cpu_kernels.gemm_kernel

    def with_int8_of(share: float) -> set[str]:
        """Dtypes found when an int8 product is a float32 one that is said to be `share` times the work."""

        def kernel_of(dtype: str, threads: int, size: int) -> Kernel:
            kernel = real("float32" if dtype == "int8" else dtype, threads, size)
            return replace(kernel, work=kernel.work * share) if dtype == "int8" else kernel

        monkeypatch.setattr(cpu_kernels, "gemm_kernel", kernel_of)
        return set(peaks_of(calibrate_cpu(1, tmp_path, seconds=0.02, sizes=TINY)).flops_per_s)

    monkeypatch.setattr(cpu_kernels, "int8_is_exact", lambda: True)
    assert "int8" in with_int8_of(50.0)
    assert "int8" not in with_int8_of(0.02)  # a plain loop
    monkeypatch.setattr(cpu_kernels, "int8_is_exact", lambda: False)
    assert "int8" not in with_int8_of(50.0)


def test_failures_are_calibration_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match="0 threads"):
        calibrate_cpu(0, tmp_path)
    with pytest.raises(CalibrationError, match="absent"):
        calibrate_cpu(1, tmp_path / "absent", sizes=TINY)

    def out_of_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(cpu_kernels, "Streams", out_of_memory)
    with pytest.raises(CalibrationError, match="can't allocate"):
        calibrate_cpu(1, tmp_path, sizes=TINY)


def test_reads_count_the_bytes_that_they_read_and_no_written_ones() -> None:
    streams = cpu_kernels.Streams(4096)
    one_array, two_arrays = 4096, 8192
    assert {kernel.name: kernel.work for kernel in streams.reads(1)} == {
        "sum on 1 thread": one_array,
        "dot on 1 thread": two_arrays,
        "copy on 1 thread": one_array,
        "triad on 1 thread": two_arrays,
    }
    assert [kernel.name for kernel in streams.reads(2, writing=False)] == ["sum on 2 threads", "dot on 2 threads"]
    assert streams.copy(1).work == two_arrays  # as a copy it reads one array and writes another


def test_memory_is_read_by_every_number_of_threads_and_the_best_is_the_peak(tmp_path: Path) -> None:
    rates = calibrate_cpu(2, tmp_path, seconds=0.02, sizes=TINY)
    reads = {one.at["threads"]: one.value for one in rates.measured if one.quantity == "host_read_bytes_per_s"}
    assert set(reads) == {1, 2}
    assert max(reads.values()) == peaks_of(rates).memory_bytes_per_s
    assert [one.quantity for one in rates.measured] == ["host_read_bytes_per_s"] * 2 + ["copy_bytes_per_s"]


def test_gemm_kernels_count_a_multiply_and_an_add_per_term() -> None:
    kernel = cpu_kernels.gemm_kernel("float32", threads=1, size=48)
    with FlopCounterMode(display=False) as counter:
        kernel.call()
    assert kernel.work == counter.get_total_flops() == 2 * 48 * 48 * 48


def test_threads_are_halved_down() -> None:
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [2, 1]
    assert thread_counts(12) == [12, 6, 3, 1]
    assert thread_counts(192) == [192, 96, 48, 24, 12, 6, 3, 1]


def test_caches_of_the_last_level_are_added_once_each(tmp_path: Path) -> None:
    for cpu, share in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        for index, (level, size, shared) in enumerate([(1, "32K", str(cpu)), (3, "16384K", share)]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in {"level": str(level), "size": size, "shared_cpu_list": shared}.items():
                (folder / name).write_text(text + "\n")
    assert last_level_cache_bytes(tmp_path) == 2 * 16 * 2**20
    assert last_level_cache_bytes(tmp_path / "cpu0") is None


def test_arrays_are_several_times_the_cache_but_never_most_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "last_level_cache_bytes", lambda: 2**20)
    assert calibrate._array_bytes() == 4 * 2**20
    monkeypatch.setattr(calibrate, "last_level_cache_bytes", lambda: 2**50)
    assert calibrate._array_bytes() < calibrate.psutil.virtual_memory().total / 8


def test_a_folder_on_a_memory_file_system_is_no_disk() -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("this system has no /dev/shm")
    assert "in memory" in (ssd.why_not_direct(shm) or "")


def test_ssd_kernels_read_every_byte_from_storage(tmp_path: Path) -> None:
    if ssd.why_not_direct(tmp_path):
        pytest.skip(f"no direct reads here: {ssd.why_not_direct(tmp_path)}")
    before = ssd.psutil.Process().io_counters().read_bytes
    with ssd.ssd_kernels(tmp_path, 3 * ssd.BLOCK_BYTES) as kernels:
        assert [kernel.work for kernel in kernels] == [3 * ssd.BLOCK_BYTES] * len(ssd.READERS)
        for kernel in kernels:
            kernel.call()
    # The kernel's own count of what this process fetched from storage: the page cache served none of it. Page faults of
    # this process may add to it.
    assert ssd.psutil.Process().io_counters().read_bytes - before >= 2 * 3 * ssd.BLOCK_BYTES
    assert list(tmp_path.iterdir()) == []
