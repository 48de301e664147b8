"""What the driver's answers for a device mean for measuring. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from moecap.doctor.devices import ENERGY, FIELDS, GPM, NVLINK, DeviceAnswers
from moecap.doctor.finding import Finding, State
from moecap.hardware.calibrate_gpu import IDLE_BYTES

SCOPES = {"power, module": "energy of the module", "power, memory": "energy of the memory"}
"""Question -> what stays unknown without its answer."""
HOPPER = "needs a data centre GPU of the Hopper generation or later, without MIG"
COUNTERS = "run as root, or let all users read counters: NVreg_RestrictProfilingToAdminUsers=0 for the nvidia module"


def judge_device(device: DeviceAnswers) -> Iterator[Finding]:
    """What one accelerator shows; findings carry the end of its UUID, since an index is no name."""
    name = f"{device.name} ...{device.uuid[-6:]}"
    yield _identity(name, device)
    yield _energy(name, device)
    yield from _power(name, device)
    yield _gpm(name, device)
    why = device.refused[NVLINK]
    detail = f"{why}: devices exchange data over PCIe, or it can't be seen" if why else "a link is active"
    yield Finding(what=f"{name}: {NVLINK}", state="limited" if why else "ok", detail=detail)
    yield from _settings(name, device)


def _identity(name: str, device: DeviceAnswers) -> Finding:
    if device.key is None:
        detail = f"driver {device.driver}; no row of the catalogue: no rated peaks and no price"
        remedy = "add a row (docs/hardware.md), or use calibrated peaks"
        return Finding(what=f"{name}: device", state="limited", detail=detail, remedy=remedy)
    return Finding(what=f"{name}: device", state="ok", detail=f"{device.key}, driver {device.driver}")


def _energy(name: str, device: DeviceAnswers) -> Finding:
    what, why = f"{name}: {ENERGY}", device.refused[ENERGY]
    if not why:
        return Finding(what=what, state="ok", detail="counts joules")
    remedy = "counters came with the Volta generation; a newer driver may have it"
    if all(device.refused[question] for question in FIELDS if question not in SCOPES):
        detail = f"{why}, and power isn't told either: its energy stays unknown"
        return Finding(what=what, state="missing", detail=detail, remedy=remedy)
    return Finding(what=what, state="limited", detail=f"{why}: energy is integrated from power", remedy=remedy)


def _gpm(name: str, device: DeviceAnswers) -> Finding:
    what, why = f"{name}: {GPM}", device.refused[GPM]
    if not why:
        return Finding(what=what, state="ok", detail="a sample was taken")
    remedy = COUNTERS if "permission" in why.lower() else HOPPER
    return Finding(what=what, state="missing", detail=f"{why}: dram_bytes and s_mbu_error stay unknown", remedy=remedy)


def _power(name: str, device: DeviceAnswers) -> Iterator[Finding]:
    for question in FIELDS:
        why = device.refused[question]
        lost = f"; {SCOPES[question]} stays unknown" if question in SCOPES else ""
        state: State = "missing" if why else "ok"
        yield Finding(what=f"{name}: {question}", state=state, detail=f"{why}{lost}" if why else "answers")


def _settings(name: str, device: DeviceAnswers) -> Iterator[Finding]:
    """What makes a device less than it could be."""
    if device.mig:
        detail = "on: what instances do can't be told apart, and none is placed"
        yield Finding(what=f"{name}: MIG", state="limited", detail=detail, remedy="sudo nvidia-smi -mig 0")
    cap, default = device.power_cap_w, device.default_power_cap_w
    if cap is not None and default is not None and cap < default:
        detail = f"{cap:g} of {default:g} W: clocks stay lower under load"
        remedy = f"sudo nvidia-smi -pl {default:g}, unless it is meant"
        yield Finding(what=f"{name}: power cap", state="limited", detail=detail, remedy=remedy)
    if device.used_bytes is not None and device.used_bytes > IDLE_BYTES:
        detail = f"{device.used_bytes / 2**30:.1f} GiB of its memory are in use: it can't be calibrated now"
        remedy = "end what uses it (`nvidia-smi` lists it)"
        yield Finding(what=f"{name}: idle", state="limited", detail=detail, remedy=remedy)
