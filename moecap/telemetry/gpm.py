"""Hardware counters of NVIDIA devices (Hopper and later) by GPM: DRAM, SM and tensor activity, PCIe and NVLink bytes.

GPM tells rates between two of its samples. Here they are summed over the whole recording, so that any window is a
difference, as with a counter. NVML refreshes what a sample holds about every 100 ms: a window's edges are that
uncertain, 2 % of 5 s at worst, less the longer it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pynvml

from moecap.telemetry.base import NOTHING, DeviceSampler, Reading
from moecap.telemetry.nvml import SLACK_NS
from moecap.telemetry.nvml_facts import is_mig

REFRESH_NS = 110_000_000
"""Samples that follow sooner may hold the same counts."""
MAX_FAILURES = 3
"""A metric that gives no number so often in a row is given up: the others wait for it meanwhile."""
MIB = 2**20
METRICS = {
    "dram_active_s": (pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL, 0.01),
    "sm_active_s": (pynvml.NVML_GPM_METRIC_SM_UTIL, 0.01),
    "tensor_active_s": (pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, 0.01),
    "gpm_pcie_sent_bytes": (pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, MIB),
    "gpm_pcie_received_bytes": (pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC, MIB),
    "gpm_nvlink_sent_bytes": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, MIB),
    "gpm_nvlink_received_bytes": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, MIB),
}
"""Quantity -> GPM's metric, and what one unit of it a second adds (percent; MiB)."""
NOT_HERE = "this device has no GPM: NVIDIA Hopper and later have"


class _NoGpmError(Exception):
    """The device has none."""


@dataclass(slots=True)
class _Counters:
    """One device."""

    handle: Any
    instance: int | None
    """Of a MIG instance; `handle` is the whole GPU's then."""
    older: Any
    newer: Any
    totals: dict[str, float]
    """Since the recording began, up to `since_ns`; those that are still asked."""
    since_ns: int | None = None
    """When `older` was taken; the start counts as the time of its row. None: nothing was sampled."""
    due_ns: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """Not told yet."""
    failures: dict[str, int] = field(default_factory=dict)


class GpmSampler(DeviceSampler):
    """Samples once a `period_s`. An interval in which a metric gives no number is asked again from its start."""

    quantities = tuple(METRICS)

    def __init__(
        self,
        nvml: Any = pynvml,
        *,
        period_s: float = 1.0,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._nvml, self._period_ns, self._clock, self._sleep = nvml, round(period_s * 1e9), clock, sleep
        self._devices: dict[str, _Counters] = {}
        self._is_open = False
        self._request = pynvml.c_nvmlGpmMetricsGet_t()
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION

    def open(self, device_uuids: Sequence[str]) -> Mapping[str, str]:
        """A first pair of samples tells which metrics the devices have; that takes a tenth of a second."""
        try:
            self._nvml.nvmlInit()
        except pynvml.NVMLError as error:
            return dict.fromkeys(device_uuids, f"NVML: {error}")
        self._is_open, self._devices = True, {}
        refused = {}
        for uuid in device_uuids:
            try:
                self._devices[uuid] = self._counters(uuid)
            except pynvml.NVMLError as error:
                refused[uuid] = f"GPM: {error}"
            except _NoGpmError:
                refused[uuid] = NOT_HERE
        if self._devices:
            self._sleep(REFRESH_NS / 1e9)
        for uuid, device in list(self._devices.items()):
            try:
                self._find_metrics(device)
            except pynvml.NVMLError as error:
                self._free(self._devices.pop(uuid))
                refused[uuid] = f"GPM: {error}"
        return refused

    def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
        """Sums up to now."""
        device = self._devices[device_uuid]
        if not edge and now_ns + SLACK_NS < device.due_ns:
            return NOTHING
        device.due_ns = now_ns + self._period_ns
        unknown, device.refused = device.refused, {}
        if not device.totals:
            return Reading(unknown=unknown)
        try:
            if device.since_ns is None:
                self._get(device, device.older)
                device.since_ns = now_ns
                return Reading(values=dict(device.totals), unknown=unknown)
            self._sleep(max(0, device.since_ns + REFRESH_NS - self._clock()) / 1e9)  # only an edge comes too soon
            taken_ns = self._get(device, device.newer)
            rates, failed = self._rates(device)
        except pynvml.NVMLError as error:
            return Reading(unknown=unknown | dict.fromkeys(device.totals, f"GPM: {error}"))
        unknown |= failed
        if self._must_wait(device, failed):
            return Reading(unknown=unknown)
        for quantity, rate in rates.items():
            device.totals[quantity] += rate * (taken_ns - device.since_ns) / 1e9
        device.since_ns, device.older, device.newer = taken_ns, device.newer, device.older
        # The row's time is a moment before the sample's: what came since is taken off again.
        early_s = (taken_ns - now_ns) / 1e9
        return Reading(values={q: device.totals[q] - rate * early_s for q, rate in rates.items()}, unknown=unknown)

    def close(self) -> None:
        """Frees the samples."""
        for device in self._devices.values():
            self._free(device)
        self._devices = {}
        if self._is_open:
            self._is_open = False
            self._nvml.nvmlShutdown()

    def _counters(self, uuid: str) -> _Counters:
        handle, instance = self._nvml.nvmlDeviceGetHandleByUUID(uuid), None
        if is_mig(uuid):
            instance = self._nvml.nvmlDeviceGetGpuInstanceId(handle)
            handle = self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        if not self._nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise _NoGpmError
        older, newer = self._nvml.nvmlGpmSampleAlloc(), self._nvml.nvmlGpmSampleAlloc()
        device = _Counters(handle, instance, older, newer, totals=dict.fromkeys(METRICS, 0.0))
        try:
            self._get(device, older)
        except pynvml.NVMLError:
            self._free(device)
            raise
        return device

    def _find_metrics(self, device: _Counters) -> None:
        self._get(device, device.newer)
        for quantity, code in self._ask(device).items():
            if isinstance(code, str):
                device.refused[quantity] = code
                del device.totals[quantity]

    def _get(self, device: _Counters, sample: Any) -> int:
        """When it was taken: half way through the call."""
        before_ns = self._clock()
        if device.instance is None:
            self._nvml.nvmlGpmSampleGet(device.handle, sample)
        else:
            self._nvml.nvmlGpmMigSampleGet(device.handle, device.instance, sample)
        return (before_ns + self._clock()) // 2

    def _ask(self, device: _Counters) -> dict[str, float | str]:
        """Each metric that is still asked: its value between the device's samples, or the error that NVML names."""
        request = self._request
        request.sample1, request.sample2, request.numMetrics = device.older, device.newer, len(device.totals)
        for slot, quantity in zip(request.metrics, device.totals, strict=False):
            slot.metricId = METRICS[quantity][0]
        self._nvml.nvmlGpmMetricsGet(request)
        return {
            quantity: str(pynvml.NVMLError(slot.nvmlReturn)) if slot.nvmlReturn else slot.value
            for slot, quantity in zip(request.metrics, device.totals, strict=False)
        }

    def _rates(self, device: _Counters) -> tuple[dict[str, float], dict[str, str]]:
        """Per second; and what gave no number -> why."""
        rates, failed = {}, {}
        for quantity, value in self._ask(device).items():
            if isinstance(value, str):
                failed[quantity] = f"GPM: {value}"
            elif not math.isfinite(value) or value < 0:
                failed[quantity] = f"GPM gave {value}"
            else:
                rates[quantity] = value * METRICS[quantity][1]
        return rates, failed

    def _must_wait(self, device: _Counters, failed: Mapping[str, str]) -> bool:
        """Whether the interval stays open for those that failed; those that failed too often are given up."""
        device.failures = {quantity: device.failures.get(quantity, 0) + 1 for quantity in failed}
        for quantity, count in device.failures.items():
            if count >= MAX_FAILURES:
                del device.totals[quantity]
        return any(quantity in device.totals for quantity in failed)

    def _free(self, device: _Counters) -> None:
        for sample in (device.older, device.newer):
            self._nvml.nvmlGpmSampleFree(sample)
