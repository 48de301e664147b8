"""GPM on scripted rates and times: sums worked out by hand, intervals that give no number, MIG, memory given back."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from moecap.telemetry.fake_nvml import H100, NOT_SUPPORTED, FakeNvml
from moecap.telemetry.gpm import METRICS, NOT_HERE, GpmSampler

SECOND = 10**9
DRAM, SENT = pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL, pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC
NVLINK = (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC)


class Clock:
    """Time that passes only when told to, or slept."""

    def __init__(self) -> None:
        self.now_ns, self.slept_s = 0, 0.0

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.now_ns += round(seconds * SECOND)


def opened(
    rates: Callable[[int, int, int], float], clock: Clock, uuid: str = "GPU-a", **changes: Any
) -> tuple[GpmSampler, FakeNvml]:
    """`rates` counts samples from the first after the two that find out which metrics there are."""
    nvml = FakeNvml({uuid: H100 | changes}, gpm=lambda metric, older, newer: rates(metric, older - 2, newer - 2))
    sampler = GpmSampler(nvml, clock=clock, sleep=clock.sleep)
    assert sampler.open([uuid]) == {}
    clock.now_ns = 0
    return sampler, nvml


def at(sampler: GpmSampler, clock: Clock, now_s: float, *, edge: bool = False, uuid: str = "GPU-a") -> Any:
    clock.now_ns = round(now_s * SECOND)
    return sampler.sample(uuid, clock.now_ns, edge=edge)


def test_shares_and_rates_are_summed_from_the_start() -> None:
    percent = {(1, 2): 40.0, (2, 3): 90.0}
    clock = Clock()
    sampler, _ = opened(lambda m, a, b: percent.get((a, b), 0.0) if m == DRAM else 3.0 if m == SENT else 0.0, clock)
    first = at(sampler, clock, 0.0, edge=True)
    assert first.values == dict.fromkeys(METRICS, 0.0)
    assert at(sampler, clock, 0.5).values == {}  # not due
    second = at(sampler, clock, 1.0).values
    third = at(sampler, clock, 3.0).values
    assert (second["dram_active_s"], third["dram_active_s"]) == pytest.approx((0.4, 0.4 + 2 * 0.9))
    assert third["gpm_pcie_sent_bytes"] == pytest.approx(3.0 * 3 * 2**20)
    assert third["tensor_active_s"] == 0.0


def test_a_sum_is_that_of_the_rows_time_not_of_the_sample_a_moment_later() -> None:
    clock = Clock()
    nvml = FakeNvml({"GPU-a": H100}, gpm=lambda *_: 50.0)
    get = nvml.nvmlGpmSampleGet

    def slow(device: str, sample: Any) -> None:
        clock.now_ns += 40_000_000  # so that a sample is taken 20 ms after its row's time
        get(device, sample)

    nvml.nvmlGpmSampleGet = slow  # type: ignore[method-assign]
    sampler = GpmSampler(nvml, clock=clock, sleep=clock.sleep)
    sampler.open(["GPU-a"])
    at(sampler, clock, 0.0, edge=True)
    sums = [at(sampler, clock, t).values["dram_active_s"] for t in (1.0, 2.0, 4.0)]
    assert sums == pytest.approx([0.5, 1.0, 2.0])


@pytest.mark.parametrize("nothing", [math.nan, math.inf])
def test_an_interval_without_a_number_is_asked_again_from_its_start(nothing: float) -> None:
    values = {(1, 2): nothing, (1, 3): 60.0, (3, 4): 10.0}
    clock = Clock()
    sampler, _ = opened(lambda m, a, b: values.get((a, b), 0.0) if m == DRAM else 20.0, clock)
    at(sampler, clock, 0.0, edge=True)
    failed = at(sampler, clock, 1.0)
    assert failed.values == {} and failed.unknown == {"dram_active_s": f"GPM gave {nothing}"}
    whole = at(sampler, clock, 2.0).values
    assert (whole["dram_active_s"], whole["sm_active_s"]) == pytest.approx((2 * 0.6, 2 * 0.2))
    assert at(sampler, clock, 3.0).values["dram_active_s"] == pytest.approx(2 * 0.6 + 0.1)


def test_a_metric_that_never_gives_a_number_is_given_up_and_the_others_lose_nothing() -> None:
    clock = Clock()
    sampler, _ = opened(lambda m, a, b: -0.5 if m == DRAM and a >= 1 else 20.0, clock)
    at(sampler, clock, 0.0, edge=True)
    readings = [at(sampler, clock, float(t)) for t in range(1, 6)]
    assert [one.unknown for one in readings] == [{"dram_active_s": "GPM gave -0.5"}] * 3 + [{}, {}]
    assert [one.values.get("sm_active_s") for one in readings] == [None, None, *map(pytest.approx, (0.6, 0.8, 1.0))]
    assert "dram_active_s" not in readings[-1].values


def test_metrics_that_the_device_lacks_are_told_once_and_never_zero() -> None:
    clock = Clock()
    sampler, _ = opened(lambda m, a, b: -NOT_SUPPORTED if m in NVLINK else 20.0, clock)
    first, second = at(sampler, clock, 0.0, edge=True), at(sampler, clock, 1.0)
    assert first.unknown == {"gpm_nvlink_sent_bytes": "Not Supported", "gpm_nvlink_received_bytes": "Not Supported"}
    assert set(first.values) == set(second.values) == set(METRICS) - set(first.unknown)
    assert second.unknown == {}


def test_samples_that_fail_are_unknown_and_lose_nothing() -> None:
    clock = Clock()
    sampler, nvml = opened(lambda *_: 50.0, clock)
    at(sampler, clock, 0.0, edge=True)
    nvml.devices["GPU-a"]["nvmlGpmSampleGet"] = pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
    failed = at(sampler, clock, 1.0)
    assert failed.values == {} and set(failed.unknown) == set(METRICS)
    assert failed.unknown["dram_active_s"] == "GPM: Timeout"
    nvml.devices["GPU-a"]["nvmlGpmSampleGet"] = None
    assert at(sampler, clock, 2.0).values["dram_active_s"] == pytest.approx(1.0)


def test_a_last_sample_waits_until_the_counts_are_new() -> None:
    clock = Clock()
    sampler, _ = opened(lambda *_: 50.0, clock)
    at(sampler, clock, 0.0, edge=True)
    at(sampler, clock, 1.0)
    clock.slept_s = 0.0
    last = at(sampler, clock, 1.03, edge=True)
    assert clock.slept_s == pytest.approx(0.08)
    assert last.values["dram_active_s"] == pytest.approx(0.515)


def test_a_mig_instance_is_sampled_through_its_gpu() -> None:
    clock = Clock()
    nvml = FakeNvml(
        {"MIG-1": {**H100, "nvmlDeviceGetGpuInstanceId": 7, "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": "GPU-a"},
         "GPU-a": H100}
    )  # fmt: skip
    sampler = GpmSampler(nvml, clock=clock, sleep=clock.sleep)
    assert sampler.open(["MIG-1"]) == {}
    at(sampler, clock, 0.0, edge=True, uuid="MIG-1")
    assert at(sampler, clock, 1.0, uuid="MIG-1").values["dram_active_s"] == pytest.approx(0.5)
    assert nvml.calls["nvmlGpmMigSampleGet GPU-a 7"] == 4


def test_devices_without_gpm_say_so_and_all_memory_is_given_back() -> None:
    old = H100 | {"nvmlGpmQueryDeviceSupport": SimpleNamespace(isSupportedDevice=0)}
    busy = H100 | {"nvmlGpmSampleGet": pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)}
    nvml = FakeNvml({"GPU-old": old, "GPU-busy": busy, "GPU-a": H100})
    sampler = GpmSampler(nvml, sleep=lambda _: None)
    refused = sampler.open(["GPU-old", "GPU-busy", "GPU-a", "GPU-z"])
    assert refused == {
        "GPU-old": NOT_HERE, "GPU-busy": "GPM: Insufficient Permissions", "GPU-z": "GPM: Not Found",
    }  # fmt: skip
    assert len(nvml.samples) == 2
    sampler.close()
    assert (nvml.samples, nvml.open) == ({}, 0)


def test_a_period_is_configurable() -> None:
    clock = Clock()
    nvml = FakeNvml({"GPU-a": H100})
    sampler = GpmSampler(nvml, period_s=0.5, clock=clock, sleep=clock.sleep)
    sampler.open(["GPU-a"])
    taken = [k for k in range(21) if at(sampler, clock, k / 10).values]
    assert taken == [0, 5, 10, 15, 20]
