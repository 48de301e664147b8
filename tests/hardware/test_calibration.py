"""What is kept of calibrations, and when it is read again; nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from moecap.errors import CalibrationError
from moecap.hardware import calibration
from moecap.hardware.calibrated import failed
from moecap.hardware.calibration import Calibrations, cache_folder, conditions, measured, why_not_kept
from moecap.records import HardwarePart, Measured, Peaks, Rates

PART = HardwarePart(kind="device", name="NVIDIA L4", device_uuids=("GPU-0",), conditions={"driver": "580"})
OTHER = replace(PART, conditions={"driver": "590"})


def rates(rate: float = 1.0, **spread: float) -> Rates:
    peaks = Peaks(source="calibrated", memory_bytes_per_s=rate, flops_per_s={"int8": 7.0}, spread=spread)
    return Rates(peaks=peaks, measured=(Measured(quantity="q", value=2.0, spread=0.1, at={"threads": 4}),))


class Bench:
    """Measures by handing over the rates that it was given, in turn, and counts the parts that it was asked for."""

    def __init__(self, *found: Rates) -> None:
        self._left, self.asked = list(found), list[HardwarePart]()

    def __call__(self, parts: Sequence[HardwarePart]) -> Iterable[tuple[HardwarePart, Rates, float]]:
        self.asked += parts
        return [(part, self._left.pop(0), 3.5) for part in parts]


def test_what_was_measured_is_kept_and_read_by_the_next_one(tmp_path: Path) -> None:
    (first,) = Calibrations(tmp_path).of([PART], measure=Bench(rates()))
    assert not first.cached and first.calibration.took_s == 3.5 and first.not_kept == ""
    (again,) = Calibrations(tmp_path).of([PART], measure=Bench())
    assert again.cached
    assert (again.file, again.calibration) == (first.file, first.calibration)
    assert [str(path) for path in tmp_path.rglob("*.json")] == [first.file]


def test_another_driver_is_other_hardware(tmp_path: Path) -> None:
    Calibrations(tmp_path).of([PART], measure=Bench(rates(1.0)))
    bench = Bench(rates(2.0))
    found = Calibrations(tmp_path).of([PART, OTHER], measure=bench)
    assert bench.asked == [OTHER]
    assert [one.calibration.rates for one in found] == [rates(1.0), rates(2.0)]
    assert [one.cached for one in found] == [True, False]


def test_again_measures_and_replaces(tmp_path: Path) -> None:
    Calibrations(tmp_path).of([PART], measure=Bench(rates(1.0)))
    (found,) = Calibrations(tmp_path).of([PART], again=True, measure=Bench(rates(2.0)))
    assert (found.cached, found.calibration.rates) == (False, rates(2.0))
    (kept,) = Calibrations(tmp_path).of([PART], measure=Bench())
    assert kept.calibration.rates == rates(2.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"part": {"kind": "cpu"}}'])
def test_a_broken_file_is_measured_over(text: str, tmp_path: Path) -> None:
    (first,) = Calibrations(tmp_path).of([PART], measure=Bench(rates()))
    assert first.file is not None
    Path(first.file).write_text(text)
    (found,) = Calibrations(tmp_path).of([PART], measure=Bench(rates(2.0)))
    assert not found.cached
    assert json.loads(Path(first.file).read_text())["rates"]["peaks"]["memory_bytes_per_s"] == 2.0


def test_what_was_disturbed_serves_its_agent_and_no_other(tmp_path: Path) -> None:
    agent = Calibrations(tmp_path)
    (first,) = agent.of([PART], measure=Bench(rates(memory=0.6)))
    assert first.file is None
    assert first.not_kept == "its rounds differ, memory by 60% of their median: other work ran beside it"
    (second,) = agent.of([PART], measure=Bench())
    assert (second.cached, second.calibration) == (True, first.calibration)
    (elsewhere,) = Calibrations(tmp_path).of([PART], measure=Bench(rates(2.0)))
    assert not elsewhere.cached


def test_rounds_that_agree_within_half_are_kept_and_disks_may_differ_more() -> None:
    assert why_not_kept(rates(memory=0.5, ssd=3.0, host=2.0)) == ""
    assert "int8 by 51%" in why_not_kept(rates(memory=0.1, int8=0.51))
    assert why_not_kept(failed("no torch")) == "it failed"
    assert why_not_kept(replace(rates(), disturbed="others kept 1.5 CPUs busy")) == "others kept 1.5 CPUs busy"
    assert why_not_kept(Rates(peaks=None)) == ""


def test_a_folder_that_cannot_be_written_is_told_and_held_in_memory(tmp_path: Path) -> None:
    (tmp_path / "calibration").write_text("a file")
    agent = Calibrations(tmp_path)
    (found,) = agent.of([PART], measure=Bench(rates()))
    assert found.file is None and "MOECAP_CACHE" in found.not_kept
    assert agent.of([PART], measure=Bench())[0].cached


def test_where_the_cache_is() -> None:
    assert cache_folder({"MOECAP_CACHE": "/c", "XDG_CACHE_HOME": "/x"}) == Path("/c")
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/moecap")
    assert cache_folder({}) == Path.home() / ".cache" / "moecap"


def test_a_part_that_fails_is_unknown_with_the_reason_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_gpu(uuids: Sequence[str]) -> list[Rates]:
        raise CalibrationError(f"torch sees 0 of {len(uuids)} devices")

    monkeypatch.setattr(calibration, "calibrate_gpus", no_gpu)
    monkeypatch.setattr(calibration, "calibrate_cpu", lambda threads, scratch: rates(float(threads)))
    second, cpu = replace(PART, device_uuids=("GPU-1",)), HardwarePart(kind="cpu", name="c", num_threads=3)
    found = {part.device_uuids: one for part, one, _ in measured([PART, second, cpu])}
    assert found[()] == rates(3.0)
    assert found["GPU-0",] == found["GPU-1",] == failed("torch sees 0 of 2 devices")


class Nvml:
    """A driver that tells the power cap of GPU-0 only."""

    def __init__(self, on_init: type[Exception] | None = None) -> None:
        self._on_init = on_init

    def nvmlInit(self) -> None:
        if self._on_init:
            raise self._on_init

    def nvmlShutdown(self) -> None: ...

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return SimpleNamespace(uuid=uuid)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        if handle.uuid != "GPU-0":
            raise pynvml.NVMLError_NotSupported
        return 350_500


def test_rates_depend_on_driver_power_cap_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "version", lambda name: {"torch": "2.13"}[name])
    assert conditions(["GPU-0", "GPU-1"], Nvml()) == {
        "": {"torch": "2.13"}, "GPU-0": {"driver": "580.1", "power_cap_w": "350.5"}, "GPU-1": {"driver": "580.1"},
    }  # fmt: skip
    assert conditions([], Nvml(on_init=pynvml.NVMLError_Unknown)) == {"": {"torch": "2.13"}}
    silent = conditions(["GPU-0"], Nvml(on_init=pynvml.NVMLError_Unknown))["GPU-0"]
    assert silent["driver"].startswith("not told: ")
