"""How an NVIDIA device is set up, by NVML: what is read once per recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from moecap.records import DeviceFacts
from moecap.telemetry.base import read_each

PCI_DEVICES = Path("/sys/bus/pci/devices")
OF_WHOLE_GPUS = "a MIG instance: the driver tells this of whole GPUs only"


class NoFactError(Exception):
    """A fact that isn't told, and why."""


def facts_of(nvml: Any, handle: Any, uuid: str, pci_devices: Path = PCI_DEVICES) -> DeviceFacts:
    """Each fact by itself."""
    readers: dict[str, Callable[[], Any]] = {
        "driver_version": lambda: str(nvml.nvmlSystemGetDriverVersion()),
        "power_cap_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "power_cap_default_w": lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1000,
        "memory_bus_bits": lambda: int(nvml.nvmlDeviceGetMemoryBusWidth(handle)),
        "memory_clock_max_hz": lambda: _max_clock_hz(nvml, handle, pynvml.NVML_CLOCK_MEM),
        "sm_clock_max_hz": lambda: _max_clock_hz(nvml, handle, pynvml.NVML_CLOCK_SM),
        "clock_policy": lambda: _clock_policy(nvml, handle),
        "mig": lambda: _mig(nvml, handle),
        "numa_node": lambda: _numa_node(nvml, handle, pci_devices),
    }
    whole = read_each(readers, (pynvml.NVMLError, OSError, ValueError, NoFactError))
    values, unknown = dict(whole.values), dict(whole.unknown)
    if is_mig(uuid):
        values = {"driver_version": values.get("driver_version"), "mig": True}
        unknown = dict.fromkeys((name for name in readers if name not in values), OF_WHOLE_GPUS)
    return DeviceFacts(name=_name(nvml, handle), unknown=unknown, **values)


def is_mig(uuid: str) -> bool:
    """Whether it names a MIG instance, not a GPU."""
    return uuid.startswith("MIG-")


def _name(nvml: Any, handle: Any) -> str:
    try:
        return str(nvml.nvmlDeviceGetName(handle))
    except pynvml.NVMLError as error:
        return f"unknown ({error})"


def _max_clock_hz(nvml: Any, handle: Any, clock: int) -> int:
    return int(nvml.nvmlDeviceGetMaxClockInfo(handle, clock)) * 1_000_000


def _clock_policy(nvml: Any, handle: Any) -> str:
    """By the application clocks; clocks that somebody locked have no function that tells them."""
    pairs = [
        (name, nvml.nvmlDeviceGetApplicationsClock(handle, clock), nvml.nvmlDeviceGetMaxClockInfo(handle, clock))
        for name, clock in (("SM", pynvml.NVML_CLOCK_SM), ("memory", pynvml.NVML_CLOCK_MEM))
    ]
    below = [f"{name} {asked} of {highest} MHz" for name, asked, highest in pairs if asked < highest]
    return f"application clocks: {', '.join(below)}" if below else "free: application clocks at their highest"


def _mig(nvml: Any, handle: Any) -> bool:
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError_NotSupported:
        return False  # the device can't be cut
    return bool(current)


def _numa_node(nvml: Any, handle: Any, pci_devices: Path) -> int:
    """The kernel's answer for its PCI address, which NVML writes with eight digits of domain."""
    domain, _, rest = str(nvml.nvmlDeviceGetPciInfo(handle).busId).lower().partition(":")
    node = int((pci_devices / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
    if node < 0:
        raise NoFactError("the kernel names no NUMA node for it")
    return node
