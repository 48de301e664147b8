"""A node's agent: recordings of its devices, and their idle power, once."""

from collections.abc import Sequence

import pytest

from cluster import node
from cluster.node import NodeAgent
from moecap.records import DeviceFacts, DeviceSample
from moecap.telemetry.base import DeviceSampler
from moecap.telemetry.fake import FakeDeviceSampler
from moecap.telemetry.idle import IdlePower

SAMPLES = [DeviceSample(time_ns=0, device_id="GPU-a", energy_j=energy_j) for energy_j in (1.0, 2.0, 3.0)]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Which devices' idle power was measured, each time."""
    asked: list[tuple[str, ...]] = []

    def idle(samplers: Sequence[DeviceSampler], device_uuids: Sequence[str]) -> dict[str, IdlePower]:
        asked.append(tuple(device_uuids))
        return {uuid: IdlePower(power_w=71.5, energy_period_s=0.1) for uuid in device_uuids}

    monkeypatch.setattr(node, "idle_powers", idle)
    fake = FakeDeviceSampler(SAMPLES, {"GPU-a": DeviceFacts(name="H100", power_cap_w=700.0)})
    monkeypatch.setattr("moecap.telemetry.recorder.make_device_samplers", lambda: [fake])
    return asked


def test_a_recording_holds_the_devices_and_what_they_drew_before(measured: list[tuple[str, ...]]) -> None:
    agent = NodeAgent()
    agent.measure_idle(("GPU-a",))
    agent.start_telemetry(1, ("GPU-a",))
    telemetry = agent.stop_telemetry()
    assert [one.energy_j for one in telemetry.device_samples][:2] == [1.0, 2.0]
    facts = telemetry.device_facts["GPU-a"]
    assert (facts.power_cap_w, facts.idle_power_w, facts.energy_period_s) == (700.0, 71.5, 0.1)


def test_idle_power_is_measured_once_and_not_where_there_is_no_device(measured: list[tuple[str, ...]]) -> None:
    agent = NodeAgent()
    agent.measure_idle(())
    agent.measure_idle(("GPU-a",))
    agent.measure_idle(("GPU-a", "GPU-b"))
    assert measured == [("GPU-a",), ("GPU-b",)]


def test_an_agent_that_did_not_measure_says_so(measured: list[tuple[str, ...]]) -> None:
    agent = NodeAgent()
    agent.start_telemetry(1, ("GPU-a",))
    facts = agent.stop_telemetry().device_facts["GPU-a"]
    assert facts.idle_power_w is None and "restarted" in facts.unknown["idle_power_w"]


def test_a_recording_that_cannot_start_spoils_none_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = NodeAgent()
    with monkeypatch.context() as broken:
        broken.setattr("moecap.telemetry.recorder.Devices", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            agent.start_telemetry(1, ())
    agent.start_telemetry(1, ())
    assert len(agent.stop_telemetry().samples) >= 2


def test_idle_power_that_cannot_be_measured_is_null_and_ends_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "idle_powers", lambda *_: 1 / 0)
    agent = NodeAgent()
    agent.measure_idle(("GPU-a",))
    assert agent._idle == {"GPU-a": IdlePower(reason="ZeroDivisionError: division by zero")}
