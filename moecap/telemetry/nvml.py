"""NVIDIA devices by NVML, by UUID. What hardware counters tell beyond it is `gpm`'s.

Power is asked at every sample, in one call; what changes slowly once a second; what takes the driver milliseconds of
CPU time less often: its energy counter every other second, those of NVLink every ten. PCIe rates too, as NVML counts
for 20 ms while the caller waits, and not at all where GPM counts them. Devices take turns at these. What a device or a
driver doesn't support is asked once per recording. Units: docs/telemetry.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from moecap.records import DeviceFacts
from moecap.telemetry.base import DeviceSampler, Reading
from moecap.telemetry.nvml_facts import OF_WHOLE_GPUS, facts_of, is_mig
from moecap.telemetry.nvml_sources import (
    ENERGY_CALLS,
    FALLBACKS,
    FAST_FIELDS,
    LINK_FIELDS,
    MIG_CALLS,
    PCIE_CALLS,
    QUANTITIES,
    SLOW_CALLS,
    SLOW_FIELDS,
    Call,
    Field,
)

SLOW_NS = 1_000_000_000
ENERGY_NS = 2_000_000_000
RARE_NS = 10_000_000_000
SLACK_NS = 20_000_000
"""What is due so soon is asked now: a cadence of 10 Hz comes a little early at times."""
LASTING = (
    pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_InvalidArgument,
    pynvml.NVMLError_NoPermission,
)  # fmt: skip
"""Errors that asking again in the same recording won't cure."""
GPM_COUNTS = "not asked: GPM counts it without waiting (gpm_pcie_sent_bytes, gpm_pcie_received_bytes)"
VALUES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t


class _Asked:
    """What is asked of one device at one rate: less and less, as it answers that it doesn't support something."""

    def __init__(self, nvml: Any, handle: Any, fields: Sequence[Field] = (), calls: Sequence[Call] = ()) -> None:
        self._nvml, self._handle = nvml, handle
        self._fields, self._calls = list(fields), list(calls)
        self._seen: set[str] = set()
        """Quantities that were read at least once: an error of these passes."""

    def read(self, values: dict[str, Any], unknown: dict[str, str]) -> None:
        """What can be read now, into both."""
        if self._fields:
            for field, error in self._read_fields(values).items():
                self._failed(field, error, unknown)
        for call in tuple(self._calls):
            try:
                values.update(zip(call.quantities, call.read(self._nvml, self._handle), strict=True))
                self._seen.update(call.quantities)
            except pynvml.NVMLError as error:
                unknown.update(dict.fromkeys(call.quantities, str(error)))
                if self._lasts(error, call.quantities[0]):
                    self._calls.remove(call)

    def _read_fields(self, values: dict[str, Any]) -> dict[Field, Exception]:
        """Those that failed -> how."""
        try:
            ids = [(field.field_id, field.scope) for field in self._fields]
            found = self._nvml.nvmlDeviceGetFieldValues(self._handle, ids)
        except pynvml.NVMLError as all_failed:
            return dict.fromkeys(self._fields, all_failed)
        failed: dict[Field, Exception] = {}
        for field, value in zip(self._fields, found, strict=True):
            if value.nvmlReturn == pynvml.NVML_SUCCESS:
                values[field.quantity] = getattr(value.value, VALUES[value.valueType]) * field.scale
                self._seen.add(field.quantity)
            else:
                failed[field] = pynvml.NVMLError(value.nvmlReturn)
        return failed

    def _failed(self, field: Field, error: Exception, unknown: dict[str, str]) -> None:
        lasts, instead = self._lasts(error, field.quantity), FALLBACKS.get(field.quantity)
        if lasts:
            self._fields.remove(field)
        if lasts and instead is not None:
            self._calls.append(instead)  # it is asked in this very sample
        else:
            unknown[field.quantity] = str(error)

    def _lasts(self, error: Exception, quantity: str) -> bool:
        return isinstance(error, LASTING) and quantity not in self._seen


@dataclass(slots=True)
class _Paced:
    """What is asked once a period, and mostly at both ends of a recording."""

    asked: _Asked
    period_ns: int
    at_edges: bool = True
    due_ns: int | None = None
    """None: before the first sample."""

    def is_due(self, now_ns: int, *, edge: bool) -> bool:
        if edge:
            return self.at_edges
        return self.due_ns is not None and now_ns + SLACK_NS >= self.due_ns


@dataclass(slots=True)
class _Device:
    handle: Any
    fast: _Asked
    paced: Sequence[_Paced]
    refused: Mapping[str, str] | None = None
    """What is not asked at all -> why; told with the first sample."""


class NvmlSampler(DeviceSampler):
    """One sample of what is fast is one call."""

    quantities = QUANTITIES

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml, self._is_open = nvml, False
        self._devices: dict[str, _Device] = {}

    def open(self, device_uuids: Sequence[str]) -> Mapping[str, str]:
        """Everything is asked again, whatever an earlier recording found."""
        try:
            self._nvml.nvmlInit()
        except pynvml.NVMLError as error:
            return dict.fromkeys(device_uuids, f"NVML: {error}")
        self._is_open, self._devices = True, {}
        refused = {}
        for uuid in device_uuids:
            try:
                self._devices[uuid] = self._device(uuid)
            except pynvml.NVMLError as error:
                refused[uuid] = f"NVML knows no such device: {error}"
        return refused

    def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
        """Power; the others when they are due."""
        device = self._devices[device_uuid]
        values: dict[str, Any] = {}
        unknown: dict[str, str] = dict(device.refused or {})
        device.refused = None
        device.fast.read(values, unknown)
        for one in device.paced:
            if one.due_ns is None:
                one.due_ns = self._first_due_ns(device, one, now_ns)
            if one.is_due(now_ns, edge=edge):
                one.due_ns = one.due_ns if edge else now_ns + one.period_ns
                one.asked.read(values, unknown)
        return Reading(values=values, unknown=unknown)

    def facts(self, device_uuid: str) -> DeviceFacts | None:
        """Asked now."""
        return facts_of(self._nvml, self._devices[device_uuid].handle, device_uuid)

    def busy(self, device_uuid: str) -> str | None:
        """By processes that compute on it, else by its utilisation: containers may hide processes."""
        handle = self._devices[device_uuid].handle
        try:
            processes = len(self._nvml.nvmlDeviceGetComputeRunningProcesses(handle))
            percent = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu
        except pynvml.NVMLError as error:
            return f"whether it is used can't be told: {error}"
        if processes:
            return f"{processes} process{'es' if processes > 1 else ''} held it"
        return f"it was {percent} % utilised" if percent else None

    def close(self) -> None:
        """NVML counts how often it was initialised."""
        self._devices = {}
        if self._is_open:
            self._is_open = False
            self._nvml.nvmlShutdown()

    def _device(self, uuid: str) -> _Device:
        nvml, handle = self._nvml, self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        if is_mig(uuid):
            told = {quantity for call in MIG_CALLS for quantity in call.quantities}
            refused = {quantity: OF_WHOLE_GPUS for quantity in QUANTITIES if quantity not in told}
            slow = _Paced(_Asked(nvml, handle, calls=MIG_CALLS), SLOW_NS)
            return _Device(handle, _Asked(nvml, handle), [slow], refused=refused)
        paced = [
            _Paced(_Asked(nvml, handle, calls=ENERGY_CALLS), ENERGY_NS),
            _Paced(_Asked(nvml, handle, SLOW_FIELDS, SLOW_CALLS), SLOW_NS),
            _Paced(_Asked(nvml, handle, LINK_FIELDS), RARE_NS),
        ]
        if _has_gpm(nvml, handle):
            refused = {quantity: GPM_COUNTS for call in PCIE_CALLS for quantity in call.quantities}
        else:
            refused = {}
            paced.append(_Paced(_Asked(nvml, handle, calls=PCIE_CALLS), RARE_NS, at_edges=False))
        return _Device(handle, _Asked(nvml, handle, FAST_FIELDS), paced, refused=refused)

    def _first_due_ns(self, device: _Device, one: _Paced, now_ns: int) -> int:
        """Devices take turns, so that no sample of all of them takes long. What isn't asked at the start is asked soon
        after it."""
        turn, turns = list(self._devices.values()).index(device), len(self._devices)
        return now_ns + one.period_ns * (turn + one.at_edges) // turns


def _has_gpm(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except pynvml.NVMLError:
        return False
