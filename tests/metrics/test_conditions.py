"""Temperatures, clocks and throttling of the placed devices in the window, and the marks that telemetry leads to."""

from typing import Any

import numpy as np
import pytest
from hand_made import a_run, device, one_pass, performance_point, placed, request, routed, view

from moecap.metrics.declare import METRICS, Observed
from moecap.metrics.reduce import reduce_runs
from moecap.records import DeviceSample, Phase, RepeatsSpec, StudyPlan
from moecap.store import RunData

HOT = (
    device(-1, temperature_c=20.0, sm_clock_hz=10, throttle_reasons=("hardware slowdown",)),  # before the window
    device(1, temperature_c=50.0, sm_clock_hz=1980, throttle_reasons=()),
    device(2, temperature_c=60.0, sm_clock_hz=1980, throttle_reasons=("idle",)),
    device(3, temperature_c=70.0, throttle_reasons=("power cap", "heat (software)")),
    device(4, temperature_c=90.0, sm_clock_hz=1200, throttle_reasons=("power cap", "application clocks")),
    device(5, "GPU-b", temperature_c=99.0, throttle_reasons=("hardware slowdown",)),  # another's
)
"""Reasons of four samples in the window, of which two hold clocks back."""


def run_of(*devices: DeviceSample, **changes: Any) -> RunData:
    decode = one_pass(0, Phase.DECODE, 1.0, 1.0, (1,), (5,))
    return a_run(
        devices=devices, requests=(request(0, 1.0, (2.0,)),), passes=(decode,), routing=(routed(0, (1, 1, 0, 0)),),
        **{**placed("GPU-a"), **changes},
    )  # fmt: skip


def observed(name: str, run: RunData) -> list[Observed]:
    return list(METRICS[name].observe(view(run)))


def test_temperatures_and_clocks_of_the_window() -> None:
    (temperature,), (clock,) = observed("temperature_c", run_of(*HOT)), observed("sm_clock_hz", run_of(*HOT))
    assert temperature.samples is not None and temperature.samples.tolist() == [50, 60, 70, 90]
    assert clock.samples is not None and clock.samples.tolist() == [1980, 1980, 1200]
    (none,) = observed("memory_temperature_c", run_of(*HOT, unknown={"devices.memory_temperature_c": "not supported"}))
    assert none.missing == "not supported"


def test_share_of_samples_that_are_throttled() -> None:
    every, *by_reason = observed("throttled_share", run_of(*HOT))
    assert (every.numerator, every.denominator) == (2, 4)
    assert [(one.qualifiers["reason"], one.numerator) for one in by_reason] == [
        ("heat (software)", 1),
        ("power cap", 2),
    ]


def marks(run: RunData) -> list[str]:
    plan = StudyPlan(name="s", store="", points=(performance_point(),), repeats=RepeatsSpec())
    (compared,) = reduce_runs([run], plan).cap["sets"]
    (entry,) = compared["entries"]
    found: list[str] = entry["marks"]
    return found


@pytest.mark.parametrize(("watts", "apart"), [(94.0, "-6.0%"), (96.0, None), (106.0, "+6.0%")])
def test_marks_of_what_telemetry_shows(watts: float, apart: str | None) -> None:
    """The counter says 100 W; 10 s hold 100 of its updates."""
    steady = tuple(device(t, energy_j=100 * t, power_w=watts, throttle_reasons=()) for t in np.arange(-1, 12, 0.1))
    found = [one for one in marks(run_of(*steady)) if "energy" in one or "throttled" in one]
    assert found == ([f"energy disagreement: integrated power is {apart} off the counter"] if apart else [])


def test_marks_of_a_short_window_and_of_throttling() -> None:
    steady = [device(t, energy_j=100 * t, power_w=100.0) for t in np.arange(-1, 12, 0.1)]
    found = marks(run_of(*steady, *HOT[1:5], window_s=(0.0, 9.5)))
    assert "short energy window" in found and "throttled in 50% of the samples" in found
