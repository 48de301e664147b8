"""Idle power in virtual time, from energy counters that step as a driver's do."""

from collections.abc import Mapping, Sequence

import pytest

from moecap.records import DeviceFacts
from moecap.telemetry.base import DeviceSampler, Reading
from moecap.telemetry.idle import IdlePower, idle_powers


class Time:
    """Passes when it is slept, and a little at every look."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        self.now_s += 0.0005
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Stepping(DeviceSampler):
    """Counters of devices that draw so many watts, and are brought up to date every `period_s`."""

    quantities = ("energy_j",)

    def __init__(self, time: Time, watts: Mapping[str, float], period_s: float = 0.1) -> None:
        self.time, self.watts, self.period_s = time, watts, period_s
        self.busy_from_s: dict[str, float] = {}
        self.closed = False

    def open(self, device_uuids: Sequence[str]) -> Mapping[str, str]:
        return {uuid: "not mine" for uuid in device_uuids if uuid not in self.watts}

    def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
        steps = self.time.now_s // self.period_s
        return Reading(values={"energy_j": 5000.0 + steps * self.period_s * self.watts[device_uuid]})

    def busy(self, device_uuid: str) -> str | None:
        return "1 process held it" if self.time.now_s >= self.busy_from_s.get(device_uuid, 1e9) else None

    def close(self) -> None:
        self.closed = True


def measured(sampler: DeviceSampler, time: Time, *uuids: str) -> dict[str, IdlePower]:
    return idle_powers([sampler], uuids, clock=time, sleep=time.sleep)


def test_power_and_the_counters_period_come_out() -> None:
    time = Time()
    sampler = Stepping(time, {"GPU-a": 71.5, "GPU-b": 120.0})
    found = measured(sampler, time, "GPU-a", "GPU-b")
    # both ends are seen at most one look (7 ms) late, over at least 10 s
    assert found["GPU-a"].power_w == pytest.approx(71.5, rel=0.0015)
    assert found["GPU-b"].power_w == pytest.approx(120.0, rel=0.0015)
    assert found["GPU-a"].energy_period_s == pytest.approx(0.1, abs=0.007)
    assert 112 < time.now_s < 114
    assert sampler.closed


def test_devices_in_use_before_or_meanwhile_have_a_reason_and_cost_no_time_alone() -> None:
    time = Time()
    sampler = Stepping(time, {"GPU-a": 71.5})
    sampler.busy_from_s = {"GPU-a": 0.0}
    assert measured(sampler, time, "GPU-a") == {
        "GPU-a": IdlePower(reason="not idle before the first run: 1 process held it")
    }
    assert time.now_s < 101
    sampler.busy_from_s = {"GPU-a": 105.0}
    assert measured(sampler, time, "GPU-a") == {
        "GPU-a": IdlePower(reason="not idle while it was measured: 1 process held it")
    }


def test_counters_that_stand_still_or_fail_have_a_reason() -> None:
    time = Time()
    still = Stepping(time, {"GPU-a": 0.0})
    assert measured(still, time, "GPU-a")["GPU-a"] == IdlePower(reason="the energy counter did not change")

    class Failing(Stepping):
        def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
            return Reading(unknown={"energy_j": "Not Supported"})

    class Raising(Stepping):
        def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
            raise OSError("gone")

    assert measured(Failing(time, {"GPU-a": 1.0}), time, "GPU-a")["GPU-a"].reason == "Not Supported"
    assert measured(Raising(time, {"GPU-a": 1.0}), time, "GPU-a")["GPU-a"].reason == "OSError: gone"


def test_a_counter_slower_than_it_is_followed_has_a_power_but_no_period() -> None:
    time = Time()
    found = measured(Stepping(time, {"GPU-a": 50.0}, period_s=1.4), time, "GPU-a")["GPU-a"]
    assert found.power_w == pytest.approx(50.0, rel=0.0015)
    assert found.energy_period_s is None and "changed only once" in found.reason


def test_the_first_sampler_that_knows_a_device_measures_it_and_strange_ones_have_reasons() -> None:
    time = Time()
    nvidia, amd = Stepping(time, {"GPU-a": 70.0}), Stepping(time, {"GPU-a": 1.0, "amd-b": 90.0})
    found = idle_powers([nvidia, amd], ["GPU-a", "amd-b", "GPU-z"], clock=time, sleep=time.sleep)
    assert found["GPU-a"].power_w == pytest.approx(70.0, rel=0.0015)
    assert found["amd-b"].power_w == pytest.approx(90.0, rel=0.0015)
    assert found["GPU-z"] == IdlePower(reason="not mine")
    assert nvidia.closed and amd.closed


def test_what_was_measured_is_told_with_the_devices_facts() -> None:
    facts = DeviceFacts(name="H100", unknown={"numa_node": "-"})
    known = IdlePower(power_w=70.0, energy_period_s=0.1).told_in(facts)
    assert (known.idle_power_w, known.energy_period_s, known.unknown) == (70.0, 0.1, {"numa_node": "-"})
    not_known = IdlePower(reason="busy").told_in(facts)
    assert not_known.unknown == {"numa_node": "-", "idle_power_w": "busy", "energy_period_s": "busy"}
