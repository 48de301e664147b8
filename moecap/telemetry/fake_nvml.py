"""An NVML without devices: answers as scripted, so that its samplers can be tried, and their own cost measured.

An answer is a value, an NVMLError to raise, or a function of the arguments behind the device. It uses pynvml's own
structures, so that reading them costs what it costs there.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pynvml

NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
FieldAnswers = Mapping[tuple[int, int], int]
"""(field, scope) -> what it holds; below 0: minus the NVML error that it answers."""
GpmRates = Callable[[int, int, int], float]
"""(metric, number of the older sample, of the newer) -> its value; below 0: minus the NVML error."""
H100_FIELDS: FieldAnswers = {
    (pynvml.NVML_FI_DEV_POWER_INSTANT, 0): 490_250,
    (pynvml.NVML_FI_DEV_POWER_AVERAGE, 0): 488_500, (pynvml.NVML_FI_DEV_POWER_INSTANT, 1): -NOT_SUPPORTED,
    (pynvml.NVML_FI_DEV_POWER_AVERAGE, 2): 97_125, (pynvml.NVML_FI_DEV_MEMORY_TEMP, 0): 58,
    (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, 0xFFFFFFFF): -NOT_SUPPORTED,
    (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, 0xFFFFFFFF): -NOT_SUPPORTED,
}  # fmt: skip
H100: Mapping[str, Any] = {
    "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
    "nvmlDeviceGetTotalEnergyConsumption": 7_654_321_000,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=99, memory=71),
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=70_866_960_384),
    "nvmlDeviceGetClockInfo": lambda clock: {pynvml.NVML_CLOCK_SM: 1_755, pynvml.NVML_CLOCK_MEM: 2_619}[clock],
    "nvmlDeviceGetMaxClockInfo": lambda clock: {pynvml.NVML_CLOCK_SM: 1_980, pynvml.NVML_CLOCK_MEM: 2_619}[clock],
    "nvmlDeviceGetApplicationsClock": lambda clock: {pynvml.NVML_CLOCK_SM: 1_980, pynvml.NVML_CLOCK_MEM: 2_619}[clock],
    "nvmlDeviceGetTemperature": lambda sensor: 61,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetPcieThroughput": lambda counter: {0: 1_500, 1: 2_500}[counter],
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    "nvmlDeviceGetMemoryBusWidth": 5_120,
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:1B:00.0"),
    "nvmlDeviceGetComputeRunningProcesses": [],
    "nvmlGpmQueryDeviceSupport": SimpleNamespace(isSupportedDevice=1),
}
"""As an H100 answers; the numbers are of no run."""


class FakeNvml:
    """Stands for the module pynvml. `devices`: UUID -> function -> answer; a function without one isn't supported."""

    def __init__(
        self,
        devices: Mapping[str, Mapping[str, Any]],
        *,
        fields: FieldAnswers | Callable[[str], FieldAnswers] = H100_FIELDS,
        gpm: GpmRates = lambda metric, older, newer: 50.0,
    ) -> None:
        self.devices, self._fields, self._gpm = devices, fields, gpm
        self.calls: Counter[str] = Counter()
        self.asked: Counter[tuple[int, int]] = Counter()
        self.open = 0
        self.samples: dict[int, tuple[Any, int]] = {}
        """Address of each allocated GPM sample -> its memory, and the number of the sampling that it holds."""
        self._sampled = 0

    def __getattr__(self, function: str) -> Callable[..., Any]:
        if not function.startswith("nvml"):
            raise AttributeError(function)

        def call(device: str, *arguments: Any) -> Any:
            self.calls[function] += 1
            answer = self.devices[device].get(function, pynvml.NVMLError(NOT_SUPPORTED))
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return call

    def nvmlInit(self) -> None:  # noqa: N802, D102 - NVML's names
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802, D102
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802, D102
        return "580.95.05"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802, D102
        if uuid not in self.devices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlDeviceGetFieldValues(self, device: str, fields: list[tuple[int, int]]) -> Any:  # noqa: N802, D102
        self.calls["nvmlDeviceGetFieldValues"] += 1
        answers = self._fields(device) if callable(self._fields) else self._fields
        found = (pynvml.c_nvmlFieldValue_t * len(fields))()
        for value, (field, scope) in zip(found, fields, strict=True):
            self.asked[field, scope] += 1
            value.fieldId, value.scopeId = field, scope
            answer = answers.get((field, scope), -NOT_SUPPORTED)
            value.nvmlReturn = max(0, -answer)
            value.valueType, value.value.ullVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, max(0, answer)
        return found

    def nvmlGpmSampleAlloc(self) -> Any:  # noqa: N802, D102
        memory = ctypes.create_string_buffer(8)
        pointer = ctypes.cast(memory, pynvml.c_nvmlGpmSample_t)
        self.samples[_address(pointer)] = (memory, 0)
        return pointer

    def nvmlGpmSampleFree(self, sample: Any) -> None:  # noqa: N802, D102
        del self.samples[_address(sample)]

    def nvmlGpmSampleGet(self, device: str, sample: Any) -> None:  # noqa: N802, D102
        self.calls["nvmlGpmSampleGet"] += 1
        answer = self.devices[device].get("nvmlGpmSampleGet")
        if isinstance(answer, Exception):
            raise answer
        self._sampled += 1
        self.samples[_address(sample)] = (self.samples[_address(sample)][0], self._sampled)

    def nvmlGpmMigSampleGet(self, device: str, instance: int, sample: Any) -> None:  # noqa: N802, D102
        self.calls[f"nvmlGpmMigSampleGet {device} {instance}"] += 1
        self.nvmlGpmSampleGet(device, sample)

    def nvmlGpmMetricsGet(self, request: Any) -> None:  # noqa: N802, D102
        older, newer = (self.samples[_address(one)][1] for one in (request.sample1, request.sample2))
        for metric in request.metrics[: request.numMetrics]:
            answer = self._gpm(metric.metricId, older, newer)
            metric.nvmlReturn = max(0, round(-answer)) if answer < 0 else 0
            metric.value = answer


def _address(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0
