"""Samplers on a real NVIDIA device: against bytes that are counted and energy that is integrated."""

import time

import numpy as np
import pytest
import torch

from moecap.records import DeviceSample
from moecap.telemetry.base import Telemetry, make_device_samplers
from moecap.telemetry.idle import idle_powers
from moecap.telemetry.recorder import Recorder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: torch sees none"),
]
COPIED_BYTES = 2**30
WINDOW_S = 8.0


def device_uuid() -> str:
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"


def column(telemetry: Telemetry, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and values, where it was read."""
    rows = [one for one in telemetry.device_samples if getattr(one, name) is not None]
    return np.array([one.time_ns / 1e9 for one in rows]), np.array([getattr(one, name) for one in rows])


@pytest.fixture(scope="module")
def copied() -> tuple[Telemetry, float, float, int]:
    """A recording around a window in which memory was copied; the window, and the bytes read and written in it."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    recorder = Recorder([], hz=10.0)
    recorder.start(None, (device_uuid(),))
    for _ in range(2000):  # into a steady state before the window opens
        target.copy_(source)
    torch.cuda.synchronize()
    began_s, copies = time.monotonic_ns() / 1e9, 0
    while time.monotonic_ns() / 1e9 - began_s < WINDOW_S:
        for _ in range(50):
            target.copy_(source)
        torch.cuda.synchronize()
        copies += 50
    ended_s = time.monotonic_ns() / 1e9
    for _ in range(500):  # the counters' refresh goes on in the same state
        target.copy_(source)
    torch.cuda.synchronize()
    return recorder.stop(), began_s, ended_s, copies * 2 * COPIED_BYTES


def test_every_quantity_is_read_or_explained(copied: tuple[Telemetry, float, float, int]) -> None:
    telemetry = copied[0]
    for name in DeviceSample.__dataclass_fields__:
        times, _ = column(telemetry, name)
        assert len(times) or f"devices.{name}" in telemetry.unknown, name
    facts = telemetry.device_facts[device_uuid()]
    assert facts.name == torch.cuda.get_device_name(0)
    print(facts, telemetry.unknown, telemetry.stats)


def test_energy_grows_as_power_says(copied: tuple[Telemetry, float, float, int]) -> None:
    telemetry, began_s, ended_s, _ = copied
    times, energy_j = column(telemetry, "energy_j")
    assert np.all(np.diff(energy_j) >= 0) and energy_j[-1] > energy_j[0]
    power_times, power_w = column(telemetry, "power_w")
    assert np.all(power_w > 0)
    counted_w = (np.interp(ended_s, times, energy_j) - np.interp(began_s, times, energy_j)) / (ended_s - began_s)
    inside = (power_times >= began_s) & (power_times <= ended_s)
    assert counted_w == pytest.approx(power_w[inside].mean(), rel=0.1)


def test_dram_activity_is_that_of_the_copied_bytes(copied: tuple[Telemetry, float, float, int]) -> None:
    telemetry, began_s, ended_s, counted_bytes = copied
    times, active_s = column(telemetry, "dram_active_s")
    if not len(times):
        pytest.skip(f"no DRAM counter here: {telemetry.unknown['devices.dram_active_s']}")
    peak = telemetry.device_facts[device_uuid()].dram_bytes_per_s
    assert peak is not None
    seen_bytes = (np.interp(ended_s, times, active_s) - np.interp(began_s, times, active_s)) * peak
    print(f"counted {counted_bytes:.4g}, DRAM counter {seen_bytes:.4g}: {counted_bytes / seen_bytes - 1:+.2%}")
    assert counted_bytes == pytest.approx(seen_bytes, rel=0.05)


def test_idle_power_is_below_that_of_copying(copied: tuple[Telemetry, float, float, int]) -> None:
    _, power_w = column(copied[0], "power_w")
    found = idle_powers(make_device_samplers(("nvml",)), [device_uuid()])[device_uuid()]
    print(found)
    # this process holds the device; where the driver can't see it, it measures
    assert found.reason.startswith("not idle") if found.power_w is None else found.power_w < power_w.max()
