"""AMD devices by amdsmi, the Python package of ROCm, where it is installed.

It follows amdsmi's documentation and was tried on recorded answers alone, never on a device. It reads no throttling
and no DRAM counter. Units and sources: docs/telemetry.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moecap.records import DeviceFacts
from moecap.telemetry.base import DeviceSampler, Reading, read_each
from moecap.telemetry.nvml import SLACK_NS, SLOW_NS

ABSENT = "amdsmi is not installed; it comes with ROCm, or `pip install amdsmi` in ROCm's own version"
NOT_SUPPORTED = (2, 3, 10)
"""amdsmi_status_t: not supported, not implemented, no permission: not asked again in a recording."""
NO_VALUE = (0xFFFF, 0xFFFFFFFF)
"""What older versions answer for what a device doesn't tell."""
UNREAD = "not read of AMD devices"


class NoValueError(Exception):
    """amdsmi answered, without a value."""


@dataclass(slots=True)
class _Device:
    handle: Any
    fast: dict[str, Callable[[], Any]]
    slow: dict[str, Callable[[], Any]]
    slow_due_ns: int = 0


class AmdSampler(DeviceSampler):
    """Energy and power at every sample, the rest once a second."""

    quantities = (
        "energy_j", "power_w", "power_average_w", "gpu_utilisation", "memory_utilisation", "memory_used_bytes",
        "sm_clock_hz", "memory_clock_hz", "temperature_c", "memory_temperature_c",
    )  # fmt: skip

    def __init__(self, smi: Any = None) -> None:
        self._smi, self._is_open = smi, False
        self._devices: dict[str, _Device] = {}

    def open(self, device_uuids: Sequence[str]) -> Mapping[str, str]:
        """Everything is asked again, whatever an earlier recording found."""
        try:
            self._smi = self._smi or importlib.import_module("amdsmi")
        except ModuleNotFoundError:
            return dict.fromkeys(device_uuids, ABSENT)
        try:
            self._smi.amdsmi_init()
            self._is_open = True
            handles = {
                self._smi.amdsmi_get_gpu_device_uuid(one): one for one in self._smi.amdsmi_get_processor_handles()
            }
        except self._smi.AmdSmiException as error:
            return dict.fromkeys(device_uuids, f"amdsmi: {error}")
        self._devices = {uuid: self._device(handles[uuid]) for uuid in device_uuids if uuid in handles}
        return {uuid: "amdsmi knows no such device" for uuid in device_uuids if uuid not in handles}

    def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
        """What is due, each by itself."""
        device = self._devices[device_uuid]
        reading = self._read(device.fast)
        if not edge and now_ns + SLACK_NS < device.slow_due_ns:
            return reading
        device.slow_due_ns = now_ns + SLOW_NS
        slow = self._read(device.slow)
        return Reading(values={**reading.values, **slow.values}, unknown={**reading.unknown, **slow.unknown})

    def facts(self, device_uuid: str) -> DeviceFacts | None:
        """Asked now."""
        smi, handle = self._smi, self._devices[device_uuid].handle
        cap, clocks = smi.amdsmi_get_power_cap_info, smi.amdsmi_get_clock_info
        gfx, memory = smi.AmdSmiClkType.GFX, smi.AmdSmiClkType.MEM
        readers: dict[str, Callable[[], Any]] = {
            "name": lambda: smi.amdsmi_get_gpu_asic_info(handle)["market_name"],
            "driver_version": lambda: smi.amdsmi_get_gpu_driver_info(handle)["driver_version"],
            "power_cap_w": lambda: _number(cap(handle)["power_cap"]) / 1e6,
            "power_cap_default_w": lambda: _number(cap(handle)["default_power_cap"]) / 1e6,
            "memory_bus_bits": lambda: int(_number(smi.amdsmi_get_gpu_vram_info(handle)["vram_bit_width"])),
            "memory_clock_max_hz": lambda: _hz(clocks(handle, memory)["max_clk"]),
            "sm_clock_max_hz": lambda: _hz(clocks(handle, gfx)["max_clk"]),
            "clock_policy": lambda: _policy(clocks(handle, gfx)["clk_locked"]),
            "numa_node": lambda: _node(smi.amdsmi_get_gpu_topo_numa_affinity(handle)),
        }
        found = read_each(readers, (smi.AmdSmiException, NoValueError, KeyError))
        values = {"name": "unknown", **found.values}
        return DeviceFacts(unknown={**found.unknown, "mig": UNREAD}, **values)

    def close(self) -> None:
        """Shuts amdsmi down."""
        self._devices = {}
        if self._is_open:
            self._is_open = False
            self._smi.amdsmi_shut_down()

    def _device(self, handle: Any) -> _Device:
        smi = self._smi
        clock, heat, now = smi.amdsmi_get_clock_info, smi.amdsmi_get_temp_metric, smi.AmdSmiTemperatureMetric.CURRENT
        fast: dict[str, Callable[[], Any]] = {
            "energy_j": lambda: _energy_j(smi.amdsmi_get_energy_count(handle)),
            "power_w": lambda: _number(smi.amdsmi_get_power_info(handle)["current_socket_power"]),
            "power_average_w": lambda: _number(smi.amdsmi_get_power_info(handle)["average_socket_power"]),
        }
        slow: dict[str, Callable[[], Any]] = {
            "gpu_utilisation": lambda: _number(smi.amdsmi_get_gpu_activity(handle)["gfx_activity"]) / 100,
            "memory_utilisation": lambda: _number(smi.amdsmi_get_gpu_activity(handle)["umc_activity"]) / 100,
            "memory_used_bytes": lambda: smi.amdsmi_get_gpu_memory_usage(handle, smi.AmdSmiMemoryType.VRAM),
            "sm_clock_hz": lambda: _hz(clock(handle, smi.AmdSmiClkType.GFX)["clk"]),
            "memory_clock_hz": lambda: _hz(clock(handle, smi.AmdSmiClkType.MEM)["clk"]),
            "temperature_c": lambda: heat(handle, smi.AmdSmiTemperatureType.JUNCTION, now),
            "memory_temperature_c": lambda: heat(handle, smi.AmdSmiTemperatureType.VRAM, now),
        }
        return _Device(handle, fast, slow)

    def _read(self, readers: dict[str, Callable[[], Any]]) -> Reading:
        """What isn't supported is told, and taken out of `readers`."""
        values, unknown = {}, {}
        for quantity, read in tuple(readers.items()):
            try:
                values[quantity] = read()
            except (self._smi.AmdSmiException, NoValueError, KeyError) as error:
                unknown[quantity] = f"amdsmi: {' '.join(str(error).split())}"
                if isinstance(error, NoValueError | KeyError) or getattr(error, "err_code", None) in NOT_SUPPORTED:
                    del readers[quantity]
        return Reading(values=values, unknown=unknown)


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or value in NO_VALUE:
        raise NoValueError(f"answered {value!r}")
    return value


def _energy_j(counter: Mapping[str, Any]) -> float:
    """The accumulator counts steps of so many microjoules."""
    return _number(counter["energy_accumulator"]) * _number(counter["counter_resolution"]) / 1e6


def _hz(mhz: Any) -> int:
    return int(_number(mhz) * 1_000_000)


def _policy(locked: Any) -> str:
    if not isinstance(locked, bool):
        raise NoValueError(f"answered {locked!r}")
    return "locked" if locked else "free"


def _node(index: int) -> int:
    if index < 0:
        raise NoValueError("the kernel names no NUMA node for it")
    return index
