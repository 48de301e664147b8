"""What GPU kernels count and what is made of their rates; on torch's CPU device, where no GPU is."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moecap.errors import CalibrationError
from moecap.hardware import gpu_kernels
from moecap.hardware.calibrate_gpu import DTYPES, GpuSizes, calibrate_gpus, gpu_rates, rates_of
from moecap.hardware.timing import PeakRate

TINY = GpuSizes(array_bytes=2**18, gemm_sizes=(32, 64), transfer_bytes=4096)


def test_streams_count_the_bytes_of_the_arrays_they_touch() -> None:
    streams = gpu_kernels.Streams(2**16 + 100, "cpu")  # whole rows of 4096 floats: 4 of them
    assert {kernel.name: kernel.work for kernel in streams.reads()} == {"sum": 2**16, "dot": 2**17, "mv": 2**16}
    assert streams.copy().work == 2 * 2**16
    assert streams.triad().work == 3 * 2**16


def test_streams_do_what_they_are_called() -> None:
    streams = gpu_kernels.Streams(2**14, "cpu")
    streams.triad().call()
    assert torch.equal(streams._z, streams._x + streams._y / 2)
    streams.copy().call()
    assert torch.equal(streams._z, streams._x)


@pytest.mark.parametrize("dtype", ["float32", "tfloat32", "bfloat16", "float16"])
def test_products_count_a_multiply_and_an_add_per_term(dtype: str) -> None:
    kernel = gpu_kernels.gemm_kernel(dtype, "cpu", 48)
    with FlopCounterMode(display=False) as counter:
        kernel.call()
    assert kernel.work == counter.get_total_flops() == 2 * 48**3


def test_the_precision_of_float32_products_is_set_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_float32_matmul_precision(), []
    try:
        for dtype in ("tfloat32", "float32"):
            gpu_kernels.gemm_kernel(dtype, "cpu", 8).call()
            seen.append(torch.get_float32_matmul_precision())
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["high", "highest"]


def test_a_dtype_without_a_product_is_unknown_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("needs compute capability 8.9\nand more")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    before = torch.get_float32_matmul_precision()
    try:
        rates = gpu_rates("cpu", time.perf_counter, 0.02, TINY)
    finally:
        torch.set_float32_matmul_precision(before)
    assert rates.unknown == {"float8": "torch has no such matrix product here: needs compute capability 8.9"}
    assert rates.peaks is not None and set(rates.peaks.flops_per_s) == set(DTYPES) - {"float8"}
    assert [one.quantity for one in rates.measured] == ["copy_bytes_per_s", "triad_bytes_per_s"]


def test_rates_become_peaks_tiers_and_costs() -> None:
    names = ("memory", "copy", "triad", "bfloat16", "h2d", "d2h", "kernel", "graph", "graph_kernel")
    found = {
        name: PeakRate(work_per_s=rate, kernel=f"k-{name}", spread=rate / 1e7)
        for name, rate in zip(names, (3e6, 2.8e6, 2.9e6, 8e6, 5e5, 4e5, 2e5, 1e5, 8e5), strict=True)
    }
    rates = rates_of(found, {"int8": "none"}, TINY)
    peaks = rates.peaks
    assert peaks is not None and peaks.source == "calibrated"
    assert (peaks.memory_bytes_per_s, peaks.flops_per_s, peaks.tier_bytes_per_s) == (
        3e6, {"bfloat16": 8e6}, {"host": 5e5}
    )  # fmt: skip
    assert peaks.spread == {"memory": 0.3, "bfloat16": 0.8, "host": 0.05}
    assert "memory: k-memory, bfloat16: k-bfloat16, host: k-h2d" in peaks.method
    assert {one.quantity: one.value for one in rates.measured} == pytest.approx(
        {
            "copy_bytes_per_s": 2.8e6, "triad_bytes_per_s": 2.9e6, "h2d_bytes_per_s": 5e5, "d2h_bytes_per_s": 4e5,
            "kernel_launch_s": 5e-6, "graph_launch_s": 1e-5, "graph_kernel_s": 1.25e-6,
        }
    )  # fmt: skip
    assert rates.unknown == {"int8": "none"}


def test_a_device_that_torch_does_not_see_is_an_error_that_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(CalibrationError, match="sees 0 of 1 devices"):
        calibrate_gpus(["GPU-none"])
