"""The recorder: cadence worked out by hand, samples by count, and quantities that fail without ending it."""

import threading
import time

import pytest

from moecap.errors import ConfigError
from moecap.records import HostSample
from moecap.telemetry import SAMPLERS
from moecap.telemetry.base import QUANTITIES, Reading, Sampler, make_samplers
from moecap.telemetry.fake import FakeSampler
from moecap.telemetry.recorder import Cadence, Recorder

CADENCE = Cadence(start_ns=1_000, period_ns=100)


def test_deadlines_are_absolute() -> None:
    assert [CADENCE.due_ns(index) for index in range(4)] == [1_000, 1_100, 1_200, 1_300]


@pytest.mark.parametrize(
    ("index", "now_ns", "following"),
    [
        (0, 1_000, 1),
        (0, 1_099, 1),
        (0, 1_100, 1),  # due this very moment: taken at once
        (0, 1_101, 2),  # its time has passed: skipped
        (3, 1_120, 4),  # never the same sample again
        (0, 1_950, 10),
    ],
)
def test_the_next_sample_is_the_first_whose_time_has_not_passed(index: int, now_ns: int, following: int) -> None:
    assert CADENCE.next_index(index, now_ns) == following


def test_late_is_more_than_half_a_period() -> None:
    assert not CADENCE.is_late(2, 1_250)
    assert CADENCE.is_late(2, 1_251)
    assert not CADENCE.is_late(2, 1_190)


class Counting(Sampler):
    """Counts its calls in one quantity; the event is set when `enough` were made."""

    quantities = ("memory_used_bytes",)

    def __init__(self, enough: int = 1) -> None:
        self.enough, self.reached, self.opened = enough, threading.Event(), []

    def open(self, engine_pid: int | None) -> None:
        self.calls = 0
        self.opened.append(engine_pid)

    def sample(self, now_ns: int, *, edge: bool = True) -> Reading:
        self.calls += 1
        if self.calls >= self.enough:
            self.reached.set()
        return Reading(values={"memory_used_bytes": self.calls}, unknown={})


class Broken(Sampler):
    """Raises what nobody expects."""

    quantities = ("package_energy_j",)

    def open(self, engine_pid: int | None) -> None:
        pass

    def sample(self, now_ns: int, *, edge: bool = True) -> Reading:
        raise ZeroDivisionError("division by zero")


def test_a_recording_spans_start_and_stop_with_samples_between() -> None:
    counting = Counting(enough=5)
    recorder = Recorder([counting], hz=500.0, host="node-7")
    before_ns = time.monotonic_ns()
    recorder.start(engine_pid=42)
    started_ns = time.monotonic_ns()
    assert counting.reached.wait(30)
    stopped_ns = time.monotonic_ns()
    telemetry = recorder.stop()
    times = [sample.time_ns for sample in telemetry.samples]
    assert before_ns <= times[0] <= started_ns
    assert times[-1] >= stopped_ns
    assert times == sorted(times)
    assert [sample.memory_used_bytes for sample in telemetry.samples] == list(range(1, len(times) + 1))
    assert {sample.host for sample in telemetry.samples} == {"node-7"}
    assert counting.opened == [42]
    assert telemetry.stats["samples"] == len(times) >= 6
    assert telemetry.stats["asked_period_s"] == 0.002
    assert telemetry.stats["cpu_s"] > 0


def test_even_the_shortest_recording_has_a_first_and_a_last_sample() -> None:
    recorder = Recorder([Counting()], hz=0.001)
    recorder.start()
    telemetry = recorder.stop()
    assert len(telemetry.samples) == 2
    assert (telemetry.stats["late_samples"], telemetry.stats["skipped_samples"]) == (0, 0)


def test_a_sampler_that_takes_several_periods_is_not_made_up_for_in_a_burst() -> None:
    class Slow(Counting):
        def sample(self, now_ns: int, *, edge: bool = True) -> Reading:
            reading = super().sample(now_ns, edge=edge)
            if self.calls == 2:
                time.sleep(0.05)
            return reading

    slow = Slow(enough=4)
    recorder = Recorder([slow], hz=200.0)
    recorder.start()
    assert slow.reached.wait(30)
    telemetry = recorder.stop()
    gap_ns = telemetry.samples[2].time_ns - telemetry.samples[1].time_ns
    assert gap_ns >= 50_000_000
    assert telemetry.stats["skipped_samples"] >= 9  # 50 ms are ten periods of 5 ms


def test_a_broken_sampler_costs_its_own_quantities_only() -> None:
    counting = Counting(enough=3)
    recorder = Recorder([Broken(), counting], hz=500.0)
    recorder.start()
    assert counting.reached.wait(30)
    telemetry = recorder.stop()
    assert all(sample.package_energy_j is None for sample in telemetry.samples)
    assert all(sample.memory_used_bytes is not None for sample in telemetry.samples)
    assert telemetry.unknown["package_energy_j"] == "ZeroDivisionError: division by zero"
    assert telemetry.unknown["cpu_utilisation"] == "no sampler was asked for it"
    assert "memory_used_bytes" not in telemetry.unknown


def test_a_quantity_that_is_missing_at_times_says_how_often() -> None:
    known = _sample(memory_used_bytes=5)
    recorder = Recorder([FakeSampler([_sample(), known])], hz=0.001)
    recorder.start()
    telemetry = recorder.stop()
    assert [sample.memory_used_bytes for sample in telemetry.samples] == [None, 5]
    assert telemetry.unknown["memory_used_bytes"] == "1 of 2 samples: the replayed samples don't hold it"
    assert telemetry.unknown["cpu_utilisation"] == "the replayed samples don't hold it"


def test_a_recorder_can_be_used_again_but_not_twice_at_once() -> None:
    recorder = Recorder([FakeSampler([_sample(memory_used_bytes=1), _sample(memory_used_bytes=2)])], hz=0.001)
    with pytest.raises(RuntimeError, match="not started"):
        recorder.stop()
    for _ in range(2):
        recorder.start()
        with pytest.raises(RuntimeError, match="running already"):
            recorder.start()
        assert [sample.memory_used_bytes for sample in recorder.stop().samples] == [1, 2]


def test_a_hung_sampler_does_not_hang_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moecap.telemetry.recorder.STOP_TIMEOUT_S", 0.05)
    release = threading.Event()

    class Hanging(Counting):
        def sample(self, now_ns: int, *, edge: bool = True) -> Reading:
            reading = super().sample(now_ns, edge=edge)
            if self.calls == 2:
                release.wait(30)
            return reading

    hanging = Hanging(enough=2)
    recorder = Recorder([hanging], hz=500.0)
    recorder.start()
    assert hanging.reached.wait(30)
    telemetry = recorder.stop()
    release.set()
    assert len(telemetry.samples) == 1
    assert "still hung" in telemetry.unknown["last_sample"]


def test_every_registered_sampler_honours_the_contract() -> None:
    for sampler in make_samplers(list(SAMPLERS)):
        sampler.open(None)
        reading = sampler.sample(time.monotonic_ns())
        assert set(sampler.quantities) <= set(QUANTITIES)
        assert {*reading.values, *reading.unknown} == set(sampler.quantities)
        assert not set(reading.values) & set(reading.unknown)
        assert all(reading.unknown.values())


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(ConfigError, match="'dcgm'"):
        make_samplers(["dcgm"])


def test_a_cadence_must_go_forward() -> None:
    with pytest.raises(ValueError, match="got 0"):
        Recorder([], hz=0)


def _sample(memory_used_bytes: int | None = None) -> HostSample:
    nothing = dict.fromkeys(QUANTITIES)
    return HostSample(time_ns=0, host="elsewhere", **(nothing | {"memory_used_bytes": memory_used_bytes}))
