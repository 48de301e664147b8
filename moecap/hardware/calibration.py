"""Calibrates the parts of this node, and keeps the results: by hardware, driver and torch, in the user's cache folder.

`MOECAP_CACHE` names that folder, else it is `moecap` in `XDG_CACHE_HOME` or `~/.cache`. What is measured and how, the
modules below `calibrate_*` and `collectives` know; which parts there are, `calibrated` does.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

import pynvml
from pydantic import TypeAdapter, ValidationError

from moecap.errors import CalibrationError
from moecap.hardware.calibrate import calibrate_cpu
from moecap.hardware.calibrate_gpu import calibrate_gpus
from moecap.hardware.calibrated import failed
from moecap.hardware.collectives import calibrate_collectives
from moecap.hardware.ssd import scratch_on_disk
from moecap.hardware.timing import UNSTEADY_SPREAD
from moecap.records import Calibration, HardwarePart, Rates, content_hash, to_jsonable

METHOD = 1
"""Of all measurements here; what another one found is not read."""
TIERS = ("host", "ssd")
"""Their rates differ by themselves, as disks' do."""
Measure = Callable[[Sequence[HardwarePart]], Iterable[tuple[HardwarePart, Rates, float]]]
"""Parts -> each with its rates and the seconds that they took."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A calibration, and where it comes from."""

    calibration: Calibration
    cached: bool
    """Measured earlier, not now."""
    file: str | None
    """Where it is kept."""
    not_kept: str = ""
    """Why it isn't."""


class Calibrations:
    """Those of this node, kept in `folder`; what can't be kept there is kept by this object."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._held: dict[str, Known] = {}

    def of(self, parts: Sequence[HardwarePart], *, again: bool = False, measure: Measure | None = None) -> list[Known]:
        """One per part, in their order; measured now where nothing is kept, or `again`."""
        found = {} if again else {part: known for part in map(_key, parts) if (known := self._find(part))}
        missing = [part for part in parts if _key(part) not in found]
        for part, rates, took_s in (measure or measured)(missing):
            one = Calibration(part=part, rates=rates, measured_unix_s=time.time(), took_s=took_s)
            found[_key(part)] = self._keep(one)
        return [found[_key(part)] for part in parts]

    def _find(self, key: str) -> Known | None:
        if key in self._held:
            known = self._held[key]
            return Known(calibration=known.calibration, cached=True, file=None, not_kept=known.not_kept)
        try:
            file = self._file(key)
            one = TypeAdapter(Calibration).validate_python(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, RuntimeError, ValueError, ValidationError):
            return None  # not there, or not whole: it is measured
        return Known(calibration=one, cached=True, file=str(file))

    def _keep(self, one: Calibration) -> Known:
        key = _key(one.part)
        reason = why_not_kept(one.rates)
        if not reason:
            try:
                file = self._file(key)
                file.parent.mkdir(parents=True, exist_ok=True)
                draft = file.with_name(f"{file.name}.{uuid4().hex}")
                draft.write_text(json.dumps(to_jsonable(one), indent=1), encoding="utf-8")
                draft.replace(file)
            except (OSError, RuntimeError) as error:
                reason = f"the cache can't be written: {error}; set MOECAP_CACHE to a folder that can"
            else:
                self._held.pop(key, None)
                return Known(calibration=one, cached=False, file=str(file))
        self._held[key] = Known(calibration=one, cached=False, file=None, not_kept=reason)
        return self._held[key]

    def _file(self, key: str) -> Path:
        return (self._folder or cache_folder()) / "calibration" / f"{key}.json"


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this user's results that can be had again are kept. RuntimeError when no home folder can be told."""
    if own := environment.get("MOECAP_CACHE"):
        return Path(own).expanduser()
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared) / "moecap"
    return Path.home() / ".cache" / "moecap"


def why_not_kept(rates: Rates) -> str:
    """Why these rates are not to be used again later; empty when they are."""
    if "all" in rates.unknown:
        return "it failed"
    if rates.disturbed:
        return rates.disturbed
    peaks = rates.peaks
    rated = {name: spread for name, spread in peaks.spread.items() if name not in TIERS} if peaks else {}
    unsteady = [f"{name} by {spread:.0%}" for name, spread in rated.items() if spread > UNSTEADY_SPREAD]
    return f"its rounds differ, {', '.join(unsteady)} of their median: other work ran beside it" if unsteady else ""


def measured(parts: Sequence[HardwarePart]) -> Iterable[tuple[HardwarePart, Rates, float]]:
    """Measure the parts, one after the other; a part that can't be measured has unknown rates and the reason."""
    devices = [part for part in parts if part.kind == "device"]
    if devices:  # of all of them in one process, which takes some seconds to start
        uuids = [part.device_uuids[0] for part in devices]
        rates, took_s = _timed(partial(calibrate_gpus, uuids), len(devices))
        yield from ((part, one, took_s) for part, one in zip(devices, rates, strict=True))
    for part in parts:
        if part.kind != "device":
            (one,), took_s = _timed(partial(_alone, part), 1)
            yield part, one, took_s


def _alone(part: HardwarePart) -> list[Rates]:
    if part.kind == "collectives":
        return [calibrate_collectives(part.device_uuids)]
    return [calibrate_cpu(part.num_threads or 1, scratch_on_disk())]


def _timed(measure: Callable[[], list[Rates]], count: int) -> tuple[list[Rates], float]:
    """Rates of `count` parts, and the seconds of each."""
    begin_s = time.monotonic()
    try:
        rates = measure()
    except CalibrationError as error:
        rates = [failed(str(error))] * count
    return rates, (time.monotonic() - begin_s) / count


def conditions(uuids: Sequence[str], nvml: Any = pynvml) -> dict[str, dict[str, str]]:
    """What rates on this node depend on: torch for all, and driver and power cap for each device."""
    found = {"": {"torch": _torch_version()}}
    if uuids:
        try:
            nvml.nvmlInit()
            found |= {uuid: _driver_conditions(nvml, uuid) for uuid in uuids}
            nvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            found |= {uuid: {"driver": f"not told: {error}"} for uuid in uuids}
    return found


def _driver_conditions(nvml: Any, uuid: str) -> dict[str, str]:
    driver = str(nvml.nvmlSystemGetDriverVersion())
    try:
        cap_mw = nvml.nvmlDeviceGetEnforcedPowerLimit(nvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError_NotSupported:
        return {"driver": driver}
    return {"driver": driver, "power_cap_w": f"{cap_mw / 1e3:g}"}


def _torch_version() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "absent"


def _key(part: HardwarePart) -> str:
    return content_hash([METHOD, part])
