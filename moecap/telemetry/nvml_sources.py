"""What NVML is asked: which field value or function tells which quantity, and in which unit. It asks nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

GPU_SCOPE, MODULE_SCOPE, MEMORY_SCOPE = 0, 1, 2  # nvmlPowerScopeType_t
ALL_LINKS = 0xFFFFFFFF
REASONS = {  # nvmlClocksEventReasons
    0x1: "idle", 0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake", 0x100: "display clock",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """One field value; many are read in one call."""

    quantity: str
    field_id: int
    scope: int
    scale: float


@dataclass(frozen=True, slots=True)
class Call:
    """One function, which tells one quantity or several."""

    quantities: tuple[str, ...]
    read: Callable[[Any, Any], tuple[Any, ...]]
    """From NVML and a device's handle."""


def reasons(bits: int) -> tuple[str, ...]:
    """Names of what holds the clocks down; bits that have none here by their number."""
    known = [name for bit, name in REASONS.items() if bits & bit]
    rest = bits & ~sum(REASONS)
    return (*known, *([f"reason {rest:#x}"] if rest else []))


def _utilisation(nvml: Any, device: Any) -> tuple[Any, ...]:
    rates = nvml.nvmlDeviceGetUtilizationRates(device)
    return rates.gpu / 100, rates.memory / 100


def _memory(nvml: Any, device: Any) -> tuple[Any, ...]:
    return (nvml.nvmlDeviceGetMemoryInfo(device).used,)


def _temperature(nvml: Any, device: Any) -> tuple[Any, ...]:
    return (nvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU),)


def _throttled(nvml: Any, device: Any) -> tuple[Any, ...]:
    return (reasons(nvml.nvmlDeviceGetCurrentClocksEventReasons(device)),)


def _energy(nvml: Any, device: Any) -> tuple[Any, ...]:
    return (nvml.nvmlDeviceGetTotalEnergyConsumption(device) * 1e-3,)


def _power(nvml: Any, device: Any) -> tuple[Any, ...]:
    return (nvml.nvmlDeviceGetPowerUsage(device) * 1e-3,)


def _clock(clock: int) -> Callable[[Any, Any], tuple[Any, ...]]:
    return lambda nvml, device: (nvml.nvmlDeviceGetClockInfo(device, clock) * 1_000_000,)


def _pcie(counter: int) -> Callable[[Any, Any], tuple[Any, ...]]:
    return lambda nvml, device: (nvml.nvmlDeviceGetPcieThroughput(device, counter) * 1000,)


FAST_FIELDS = (
    Field("power_w", pynvml.NVML_FI_DEV_POWER_INSTANT, GPU_SCOPE, 1e-3),
    Field("power_average_w", pynvml.NVML_FI_DEV_POWER_AVERAGE, GPU_SCOPE, 1e-3),
    Field("module_power_w", pynvml.NVML_FI_DEV_POWER_INSTANT, MODULE_SCOPE, 1e-3),
    Field("memory_power_w", pynvml.NVML_FI_DEV_POWER_AVERAGE, MEMORY_SCOPE, 1e-3),
)
SLOW_FIELDS = (Field("memory_temperature_c", pynvml.NVML_FI_DEV_MEMORY_TEMP, GPU_SCOPE, 1),)
LINK_FIELDS = (
    Field("nvlink_sent_bytes", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS, 1024),
    Field("nvlink_received_bytes", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS, 1024),
)
SLOW_CALLS = (
    Call(("gpu_utilisation", "memory_utilisation"), _utilisation),
    Call(("memory_used_bytes",), _memory),
    Call(("sm_clock_hz",), _clock(pynvml.NVML_CLOCK_SM)),
    Call(("memory_clock_hz",), _clock(pynvml.NVML_CLOCK_MEM)),
    Call(("temperature_c",), _temperature),
    Call(("throttle_reasons",), _throttled),
)
PCIE_CALLS = (
    Call(("pcie_sent_bytes_per_s",), _pcie(pynvml.NVML_PCIE_UTIL_TX_BYTES)),
    Call(("pcie_received_bytes_per_s",), _pcie(pynvml.NVML_PCIE_UTIL_RX_BYTES)),
)
ENERGY_CALLS = (Call(("energy_j",), _energy),)
FALLBACKS = {
    # Devices without the field (before Ampere, and GA100) measure an instant with this function; later ones average.
    "power_w": Call(("power_w",), _power),
}
"""Asked where the field value isn't supported."""
MIG_CALLS = (Call(("memory_used_bytes",), _memory),)
QUANTITIES = (
    *(one.quantity for one in (*FAST_FIELDS, *SLOW_FIELDS, *LINK_FIELDS)),
    *(quantity for call in (*ENERGY_CALLS, *SLOW_CALLS, *PCIE_CALLS) for quantity in call.quantities),
)
