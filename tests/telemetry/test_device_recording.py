"""Recordings of devices: what samplers say becomes rows and reasons, whatever they refuse, skip or raise."""

import sys
import threading
from collections.abc import Mapping, Sequence

import pytest

from moecap.records import DeviceFacts, DeviceSample
from moecap.telemetry import DEVICE_SAMPLERS
from moecap.telemetry.base import DEVICE_QUANTITIES, DeviceSampler, Reading, make_device_samplers
from moecap.telemetry.devicelog import DeviceLog, unknown_of_devices
from moecap.telemetry.fake import FakeDeviceSampler
from moecap.telemetry.recorder import Recorder


class Counting(DeviceSampler):
    """Counts its calls of each device; every second one has a clock."""

    quantities = ("energy_j", "sm_clock_hz")

    def __init__(self, enough: int = 1, known: tuple[str, ...] = ("GPU-a", "GPU-b")) -> None:
        self.enough, self.known, self.reached = enough, known, threading.Event()
        self.closed = 0
        self.edges: list[bool] = []

    def open(self, device_uuids: Sequence[str]) -> Mapping[str, str]:
        self.calls = dict.fromkeys(device_uuids, 0)
        return {uuid: "not one of mine" for uuid in device_uuids if uuid not in self.known}

    def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
        self.calls[device_uuid] += 1
        self.edges.append(edge)
        count = self.calls[device_uuid]
        if count >= self.enough:
            self.reached.set()
        return Reading(values={"energy_j": float(count)} | ({"sm_clock_hz": count * 10**6} if count % 2 else {}))

    def facts(self, device_uuid: str) -> DeviceFacts | None:
        return DeviceFacts(name=f"device {device_uuid}", power_cap_w=300.0)

    def close(self) -> None:
        self.closed += 1


def test_every_device_has_a_row_at_every_sample_all_of_one_time() -> None:
    counting = Counting(enough=3)
    recorder = Recorder([], device_samplers=[counting], hz=500.0)
    recorder.start(None, ("GPU-a", "GPU-b"))
    assert counting.reached.wait(30)
    telemetry = recorder.stop()
    rows = {uuid: [one for one in telemetry.device_samples if one.device_id == uuid] for uuid in ("GPU-a", "GPU-b")}
    count = len(telemetry.samples)
    assert len(rows["GPU-a"]) == len(rows["GPU-b"]) == count >= 4
    assert [one.energy_j for one in rows["GPU-b"]] == [float(n) for n in range(1, count + 1)]
    assert [one.sm_clock_hz for one in rows["GPU-a"][:3]] == [1_000_000, None, 3_000_000]
    in_turn = zip(telemetry.samples, *rows.values(), strict=True)
    assert all(host.time_ns <= a.time_ns == b.time_ns for host, a, b in in_turn)
    assert telemetry.stats["device_samples"] == 2 * count
    assert counting.edges[:3] == [True, True, False] and counting.edges[-2:] == [True, True]
    assert counting.closed == 1
    assert telemetry.device_facts["GPU-b"] == DeviceFacts(name="device GPU-b", power_cap_w=300.0)
    assert "devices.sm_clock_hz" not in telemetry.unknown  # null between its readings, but read
    assert telemetry.unknown["devices.power_w"] == "no sampler was asked for it"


def test_the_cost_is_told_as_a_share_and_by_sampler() -> None:
    counting = Counting(enough=20)
    recorder = Recorder([], device_samplers=[counting], hz=500.0)
    recorder.start(None, ("GPU-a",))
    assert counting.reached.wait(30)
    stats = recorder.stop().stats
    assert stats["cpu_share"] == stats["cpu_s"] / stats["wall_s"]
    assert 0 < stats["cpu_s_by_sampler"]["Counting"] < stats["cpu_s"] < stats["wall_s"]
    assert stats["wall_s"] >= 18 * 0.002


class Broken(Counting):
    """Raises at every turn."""

    quantities = ("power_w",)

    def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
        raise ZeroDivisionError("division by zero")

    def facts(self, device_uuid: str) -> DeviceFacts | None:
        raise ZeroDivisionError("no facts")


class Unopened(Counting):
    """Can't be opened."""

    quantities = ("temperature_c",)

    def open(self, device_uuids: Sequence[str]) -> Mapping[str, str]:
        raise OSError("no driver")


def test_broken_samplers_cost_their_own_quantities_only() -> None:
    recorder = Recorder([], device_samplers=[Broken(), Unopened(), Counting()], hz=0.001)
    recorder.start(None, ("GPU-a",))
    telemetry = recorder.stop()
    assert [one.energy_j for one in telemetry.device_samples] == [1.0, 2.0]
    assert telemetry.unknown["devices.power_w"] == "ZeroDivisionError: division by zero"
    assert telemetry.unknown["devices.temperature_c"] == "OSError: no driver"
    assert telemetry.device_facts["GPU-a"].name == "device GPU-a"  # the next sampler tells them


def test_a_device_that_no_sampler_knows_has_rows_of_nulls_and_reasons() -> None:
    recorder = Recorder([], device_samplers=[Counting(known=()), Unopened()], hz=0.001)
    recorder.start(None, ("GPU-a",))
    telemetry = recorder.stop()
    assert [one.energy_j for one in telemetry.device_samples] == [None, None]
    assert telemetry.unknown["devices.energy_j"] == "not one of mine"
    facts = telemetry.device_facts["GPU-a"]
    assert facts.power_cap_w is None and facts.unknown["power_cap_w"] == "no sampler was asked for it"


def test_a_recording_without_devices_opens_no_sampler_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecap.telemetry.recorder.make_device_samplers", lambda: pytest.fail("it made them"))
    recorder = Recorder([], hz=0.001)
    recorder.start()
    telemetry = recorder.stop()
    assert (telemetry.device_samples, telemetry.device_facts) == ((), {})
    assert not [name for name in telemetry.unknown if name.startswith("devices.")]


def test_recorded_samples_are_replayed() -> None:
    recorded = [
        DeviceSample(
            time_ns=5, device_id="GPU-a", energy_j=0.5, memory_used_bytes=2**40 + 1, throttle_reasons=("heat",)
        ),
        DeviceSample(time_ns=6, device_id="GPU-a", energy_j=1.5, memory_used_bytes=2**40 + 1, throttle_reasons=()),
    ]
    fake = FakeDeviceSampler(recorded, {"GPU-a": DeviceFacts(name="H100")})
    recorder = Recorder([], device_samplers=[fake], hz=0.001)
    for _ in range(2):
        recorder.start(None, ("GPU-a", "GPU-z"))
        telemetry = recorder.stop()
        first, second, *strange = telemetry.device_samples
        assert (first.energy_j, first.throttle_reasons, second.throttle_reasons) == (0.5, ("heat",), ())
        assert second.memory_used_bytes == 2**40 + 1 and type(second.memory_used_bytes) is int
        assert [one.energy_j for one in strange] == [None, None]
        assert telemetry.device_facts["GPU-a"].name == "H100"
        reason = telemetry.unknown["devices.energy_j"]
        assert reason == "GPU-z: the replayed samples know no such device"


def test_reasons_say_how_many_readings_failed() -> None:
    log = DeviceLog("GPU-a", {"temperature_c": "nobody reads it"})
    log.add(1, Reading(values={"energy_j": 1.0}, unknown={"power_w": "lost", "memory_power_w": "Not Supported"}))
    log.add(2, Reading(values={"energy_j": 2.0, "power_w": 300.0}))
    log.add(3, Reading(unknown={"throttle_reasons": "Timeout"}), Reading(values={"power_w": 310.0}))
    log.add(4, Reading(values={"throttle_reasons": ()}))
    assert log.unknown() == {
        "temperature_c": "nobody reads it",
        "power_w": "1 of 3 readings: lost",
        "memory_power_w": "Not Supported",
        "throttle_reasons": "1 of 2 readings: Timeout",
    }
    assert [(one.time_ns, one.power_w, one.throttle_reasons) for one in log.samples()] == [
        (1, None, None), (2, 300.0, None), (3, 310.0, None), (4, None, ()),
    ]  # fmt: skip


def test_devices_with_the_same_reason_share_it() -> None:
    same = {"GPU-a": {"power_w": "x", "energy_j": "y"}, "GPU-b": {"power_w": "x", "energy_j": "z"}}
    assert unknown_of_devices(same) == {"devices.power_w": "x", "devices.energy_j": "GPU-a: y; GPU-b: z"}
    assert unknown_of_devices({"GPU-a": {"power_w": "x"}, "GPU-b": {}}) == {"devices.power_w": "GPU-a: x"}


def test_an_hour_of_eight_devices_at_10_hz_is_held_in_64_mb() -> None:
    log = DeviceLog("GPU-a", {})
    values = dict.fromkeys(DEVICE_QUANTITIES, 1.0) | {"throttle_reasons": ()}
    for time_ns in range(1000):
        log.add(time_ns, Reading(values=values))
    held = sum(sys.getsizeof(column) for column in (log._times, log._reasons, *log._columns.values()))
    assert held / 1000 * 3600 * 10 * 8 < 64 * 2**20


def test_every_registered_sampler_of_devices_honours_the_contract() -> None:
    for sampler in make_device_samplers(list(DEVICE_SAMPLERS)):
        assert set(sampler.quantities) <= set(DEVICE_QUANTITIES)
        refused = sampler.open(["GPU-there-is-none"])
        assert set(refused) == {"GPU-there-is-none"} and all(refused.values())
        sampler.close()
        sampler.close()


def test_what_is_no_number_ends_no_recording() -> None:
    class Strange(Counting):
        def sample(self, device_uuid: str, now_ns: int, *, edge: bool) -> Reading:
            super().sample(device_uuid, now_ns, edge=edge)
            return Reading(values={"energy_j": "N/A"})

    strange = Strange(enough=3)
    recorder = Recorder([], device_samplers=[strange], hz=500.0)
    recorder.start(None, ("GPU-a",))
    assert strange.reached.wait(30)
    telemetry = recorder.stop()
    assert len(telemetry.device_samples) == len(telemetry.samples) >= 3
    assert telemetry.unknown["devices.energy_j"] == "TypeError: energy_j is 'N/A', no number"
