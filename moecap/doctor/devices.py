"""What the NVIDIA driver answers for each device: one question at a time, so that one refusal hides nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pynvml

from moecap.hardware.detect import nvidia_devices

FIELDS: dict[str, tuple[int, int]] = {
    "power, instant (GPU)": (pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_POWER_SCOPE_GPU),
    "power, average (GPU)": (pynvml.NVML_FI_DEV_POWER_AVERAGE, pynvml.NVML_POWER_SCOPE_GPU),
    "power, module": (pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_POWER_SCOPE_MODULE),
    "power, memory": (pynvml.NVML_FI_DEV_POWER_AVERAGE, pynvml.NVML_POWER_SCOPE_MEMORY),
}
"""Question -> field and scope of the driver that answers it."""
ENERGY, GPM, NVLINK = "energy counter", "GPM (DRAM and tensor activity)", "NVLink"


class RefusedError(Exception):
    """A question that a device doesn't answer, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceAnswers:
    """One device."""

    uuid: str
    name: str
    key: str | None
    """Row of the catalogue; None: there is none."""
    driver: str
    refused: Mapping[str, str]
    """Question -> why it has no answer, or nothing."""
    mig: bool | None
    """Whether it is cut into instances; None: it can't be."""
    used_bytes: int | None
    power_cap_w: float | None
    default_power_cap_w: float | None


def ask_devices(nvml: Any = pynvml) -> tuple[DeviceAnswers, ...]:
    """Every device of this node; none without a driver. DetectionError when it is there and fails."""
    devices = nvidia_devices(nvml)
    if not devices:
        return ()
    nvml.nvmlInit()
    try:
        driver = str(nvml.nvmlSystemGetDriverVersion())
        return tuple(
            DeviceAnswers(
                uuid=device.uuid, name=device.name, key=device.key, driver=driver,
                **_answers(nvml, nvml.nvmlDeviceGetHandleByUUID(device.uuid)),
            )
            for device in devices
        )  # fmt: skip
    finally:
        nvml.nvmlShutdown()


def _answers(nvml: Any, handle: Any) -> dict[str, Any]:
    questions: dict[str, Callable[[], object]] = {
        ENERGY: lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        **{name: partial(_field, nvml, handle, field) for name, field in FIELDS.items()},
        GPM: lambda: _gpm(nvml, handle),
        NVLINK: lambda: _nvlinks(nvml, handle),
    }
    mig = _told(lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
    return {
        "refused": {name: _refusal(ask) for name, ask in questions.items()},
        "mig": None if mig is None else bool(mig),
        "used_bytes": _told(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
        "power_cap_w": _told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
        "default_power_cap_w": _told(lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3),
    }


def _refusal(ask: Callable[[], object]) -> str:
    """Why it has no answer; nothing when it has."""
    try:
        ask()
    except (pynvml.NVMLError, RefusedError) as error:
        return str(error)
    return ""


def _told(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except pynvml.NVMLError:
        return None  # what isn't told isn't judged


def _field(nvml: Any, handle: Any, field: tuple[int, int]) -> None:
    (value,) = nvml.nvmlDeviceGetFieldValues(handle, [field])
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(value.nvmlReturn)


def _gpm(nvml: Any, handle: Any) -> None:
    """One sample is taken: support alone doesn't mean permission."""
    if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
        raise RefusedError("this device has none")
    sample = nvml.nvmlGpmSampleAlloc()
    try:
        nvml.nvmlGpmSampleGet(handle, sample)
    finally:
        nvml.nvmlGpmSampleFree(sample)


def _nvlinks(nvml: Any, handle: Any) -> None:
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            if nvml.nvmlDeviceGetNvLinkState(handle, link) == pynvml.NVML_FEATURE_ENABLED:
                return
        except pynvml.NVMLError_InvalidArgument:
            break  # beyond the last one
    raise RefusedError("no link is active")
