"""A calibration on a real GPU: rates lie between what such a device must reach and what its datasheet promises."""

from __future__ import annotations

import pytest

from moecap.hardware.calibrate_gpu import calibrate_gpus
from moecap.hardware.calibration import conditions
from moecap.hardware.collectives import MESSAGE_BYTES, calibrate_collectives
from moecap.hardware.detect import nvidia_devices
from moecap.records import DeviceInfo, Rates

H100 = "nvidia-h100-sxm5-80gb"


@pytest.fixture(scope="module")
def device() -> DeviceInfo:
    return nvidia_devices()[0]


@pytest.fixture(scope="module")
def rates(device: DeviceInfo) -> Rates:
    (found,) = calibrate_gpus([device.uuid])
    return found


@pytest.mark.gpu
def test_an_h100_reaches_most_of_its_datasheet_and_no_more(device: DeviceInfo, rates: Rates) -> None:
    if device.key != H100:
        pytest.skip(f"this is {device.name}, not an H100 80GB SXM")
    peaks = rates.peaks
    assert peaks is not None and peaks.memory_bytes_per_s is not None
    assert 2.2e12 < peaks.memory_bytes_per_s < 3.36e12
    assert 4e14 < peaks.flops_per_s["bfloat16"] < 9.9e14
    assert 4e14 < peaks.flops_per_s["float16"] < 9.9e14
    assert 6e14 < peaks.flops_per_s["float8"] < 1.98e15
    assert 6e14 < peaks.flops_per_s["int8"] < 1.98e15
    assert 3e13 < peaks.flops_per_s["float32"] < 6.7e13
    assert 2e14 < peaks.flops_per_s["tfloat32"] < 4.95e14
    assert rates.unknown == {}


@pytest.mark.gpu
def test_the_link_and_launches_are_measured(rates: Rates) -> None:
    found = {one.quantity: one.value for one in rates.measured}
    assert rates.peaks is not None and rates.peaks.tier_bytes_per_s == {"host": found["h2d_bytes_per_s"]}
    assert 1e10 < found["h2d_bytes_per_s"] < 6.4e10  # pinned, over PCIe 4 or 5 with 16 lanes
    assert 1e10 < found["d2h_bytes_per_s"] < 6.4e10
    assert 3e-7 < found["graph_kernel_s"] < found["kernel_launch_s"] < 1e-4
    assert found["graph_kernel_s"] < found["graph_launch_s"] < 1e-4


@pytest.mark.gpu
def test_rates_repeat(rates: Rates) -> None:
    assert rates.peaks is not None
    assert rates.peaks.spread["memory"] < 0.1
    assert rates.peaks.spread["bfloat16"] < 0.3


@pytest.mark.gpu
def test_no_context_stays_in_this_process(rates: Rates) -> None:
    import os

    import pynvml
    import torch

    if torch.cuda.is_initialized():
        pytest.skip("another test made a context in this process")
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pids = [one.pid for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    finally:
        pynvml.nvmlShutdown()
    assert os.getpid() not in pids


@pytest.mark.gpu
def test_the_driver_tells_what_rates_depend_on(device: DeviceInfo) -> None:
    found = conditions([device.uuid])[device.uuid]
    assert found["driver"][0].isdigit()
    assert float(found["power_cap_w"]) > 50


@pytest.mark.multi_gpu
def test_devices_exchange_more_than_a_network_would() -> None:
    devices = nvidia_devices()
    rates = calibrate_collectives([device.uuid for device in devices])
    found = {(one.quantity, one.at["message_bytes"]): one.value for one in rates.measured}
    assert len(found) == 4 * len(MESSAGE_BYTES)
    assert found["all_reduce_bytes_per_s", MESSAGE_BYTES[-1]] > 5e9
