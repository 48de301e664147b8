"""Windows, checks and joined recordings, by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from moecap.errors import ClusterError, EngineError
from moecap.hardware.otherload import Seen
from moecap.records import (
    DeviceFacts,
    DeviceSample,
    LoadSpec,
    ModelSpec,
    NodeInfo,
    PassRecord,
    Peaks,
    Phase,
    Placement,
    PointSpec,
    RequestRecord,
    RoutingRecord,
    RunSpec,
    ServeRecord,
    SystemSpec,
    WindowSpec,
    WorkloadSpec,
)
from moecap.run import Session, TelemetryHandle, concatenate, environment_flags, run_checks, unknown_of
from moecap.store import RunData
from moecap.telemetry.base import Telemetry
from moecap.windows import closed_loop_window


def request(index: int, sent_ns: int, first_token_ns: int | None, **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "request_id": f"r{index}", "attempt": 0, "item_index": index, "replica": 0, "scheduled_ns": None,
        "sent_ns": sent_ns, "first_token_ns": first_token_ns, "end_ns": sent_ns + 100, "chunk_ns": (),
        "chunk_tokens": (), "input_tokens": 1, "cached_tokens": 0, "output_tokens": 1, "status": "ok",
    }  # fmt: skip
    return RequestRecord(**{**fields, **changes})


def forward(pass_id: int, **changes: Any) -> PassRecord:
    fields: dict[str, Any] = {
        "pass_id": pass_id, "step_id": pass_id, "replica": 0, "phase": Phase.DECODE, "started_ns": 0, "launched_ns": 0,
        "duration_ns": 1, "num_requests": 1, "query_lens": (1,), "context_lens": (2,), "scheduled_tokens": 1,
        "cached_tokens": 0, "logits_tokens": 1, "padded_tokens": 0, "accepted_tokens": None, "valid": True,
    }  # fmt: skip
    return PassRecord(**{**fields, **changes})


def test_the_window_opens_at_the_second_first_token_and_closes_at_the_last_issue() -> None:
    served = [request(0, 0, 10), request(1, 5, 22), request(2, 60, 71), request(3, 90, 99)]
    window = closed_loop_window(served, concurrency=2)
    assert window is not None
    assert (window.start_ns, window.end_ns, window.phase) == (22, 90, Phase.STEADY)


def test_no_window_without_enough_first_tokens_or_without_a_refill() -> None:
    assert closed_loop_window([request(0, 0, None), request(1, 5, 9)], concurrency=2) is None
    assert closed_loop_window([request(0, 0, 10), request(1, 5, 22)], concurrency=2) is None


def test_checks_say_what_was_seen() -> None:
    good = ServeRecord(passes=(forward(0),), routing=(), requests=(request(0, 0, 1),))
    assert run_checks(good) == (("routing_conserves_tokens", "all_requests_completed", "passes_recorded"), {})
    bad = ServeRecord(
        passes=(forward(0), forward(1, valid=False, invalid_reason="layer 3: 7 assignments, not 8")), routing=(),
        requests=(request(0, 0, 1), request(1, 0, None, status="failed", error="too long")),
    )  # fmt: skip
    passed, failed = run_checks(bad)
    assert passed == ("passes_recorded",)
    assert failed == {
        "routing_conserves_tokens": "1 of 2 passes: layer 3: 7 assignments, not 8",
        "all_requests_completed": "1 of 2 failed: too long",
    }


def test_joined_recordings_keep_pass_ids_unique_and_routing_attached() -> None:
    routing = RoutingRecord(pass_id=1, layer=0, counts=(1, 1), distinct=2, distinct_physical=2)
    one = ServeRecord(passes=(forward(0), forward(1)), routing=(routing,), requests=(request(0, 0, 1),), observer_ns=5)
    both = concatenate([one, one])
    assert [p.pass_id for p in both.passes] == [0, 1, 2, 3]
    assert [r.pass_id for r in both.routing] == [1, 3]
    assert (len(both.requests), both.observer_ns) == (2, 10)


def test_steps_are_counted_on_where_some_have_no_pass() -> None:
    """Replicas in lockstep: step 4 is both's, steps 1 to 3 were nobody's pass."""
    passes = (forward(0), forward(1, step_id=4), forward(2, step_id=4, replica=1))
    one = ServeRecord(passes=passes, routing=(), requests=())
    assert [p.step_id for p in concatenate([one, one]).passes] == [0, 4, 4, 5, 9, 9]


def test_a_replica_that_nobody_knows_is_unknown_with_a_reason() -> None:
    known, other = request(0, 0, 1), request(1, 0, 1, replica=None)
    assert unknown_of(ServeRecord(passes=(), routing=(), requests=(known,))) == {}
    found = unknown_of(ServeRecord(passes=(), routing=(), requests=(known, other)))
    assert "which of its data-parallel replicas" in found["requests.replica"]


class LostTelemetry:
    """It starts, and is gone when it shall stop."""

    def start(self, engine_pid: int, device_uuids: Sequence[str]) -> None:
        pass

    def stop(self) -> Telemetry:
        raise ClusterError("the node agent gave no telemetry")


class RecordedTelemetry:
    """What a sampler of one device would have recorded."""

    def start(self, engine_pid: int, device_uuids: Sequence[str]) -> None:
        self.asked = tuple(device_uuids)

    def stop(self) -> Telemetry:
        samples = [DeviceSample(time_ns=t, device_id="GPU-a", energy_j=7.5 * t, throttle_reasons=()) for t in (1, 2)]
        facts = DeviceFacts(name="H100", unknown={"mig": "not asked"})
        return Telemetry(
            samples=(), stats={"cpu_s": 0.5}, unknown={"devices.power_w": "not there"}, device_samples=tuple(samples),
            device_facts={"GPU-a": facts},
        )  # fmt: skip


def run_fake(telemetry: TelemetryHandle, device_uuids: tuple[str, ...] = (), **args: Any) -> RunData:
    """8 requests of the fake engine."""
    system = SystemSpec(name="s", engine="fake", node="cpu", args={"pass_s": 0.0, **args})
    node = NodeInfo(node_id="n", hostname="h", kinds=frozenset({"cpu"}), cpu_model="c", num_cpus=1, memory_bytes=1)
    placement = Placement(node_id="n", hostname="h", kind="cpu", device_uuids=device_uuids)
    point = PointSpec(
        model=ModelSpec(name="m"), system=system, workload=WorkloadSpec(type="synthetic", options={"output_tokens": 2}),
        load=LoadSpec(concurrency=1), window=WindowSpec(warmup_requests=0, requests=8),
    )  # fmt: skip
    session = Session.open(model=point.model, system=system, placement=placement, node=node, peaks=())
    return session.run(RunSpec(point=point), study="t", telemetry=telemetry)


def test_what_the_engine_raises_is_not_masked_by_telemetry_that_does_not_stop() -> None:
    with pytest.raises(EngineError, match="told to crash at request 3") as caught:
        run_fake(LostTelemetry(), crash_at_request=3)
    assert isinstance(caught.value.__context__, ClusterError)  # telemetry was stopped, and what it said is kept


def test_what_was_recorded_of_the_placed_devices_is_handed_over() -> None:
    telemetry = RecordedTelemetry()
    run = run_fake(telemetry, ("GPU-a",))
    assert telemetry.asked == ("GPU-a",)
    assert run.devices.select(["time_ns", "device_id", "energy_j", "power_w", "throttle_reasons"]).to_pylist() == [
        {"time_ns": 1, "device_id": "GPU-a", "energy_j": 7.5, "power_w": None, "throttle_reasons": []},
        {"time_ns": 2, "device_id": "GPU-a", "energy_j": 15.0, "power_w": None, "throttle_reasons": []},
    ]
    assert run.manifest.device_facts["GPU-a"].unknown == {"mig": "not asked"}
    assert run.manifest.unknown == {"devices.power_w": "not there"}  # nothing of the CPUs' own settings


def test_the_settings_of_cpus_are_told_to_be_unread() -> None:
    assert set(run_fake(RecordedTelemetry()).manifest.unknown) == {"devices.power_w", "power_cap_w", "clock_policy"}


def test_telemetry_that_does_not_stop_after_a_good_run_is_an_error_of_its_own() -> None:
    with pytest.raises(ClusterError, match="no telemetry"):
        run_fake(LostTelemetry())


@pytest.mark.parametrize(
    ("others", "stolen", "spread", "flags"),
    [
        (0.3, 0.0, 0.2, set()),  # of two CPUs
        (0.3, 0.2, 0.2, {"disturbed"}),
        (0.0, 0.0, 0.6, {"unsteady_peaks"}),
        (1.9, 0.0, 0.6, {"disturbed", "unsteady_peaks"}),
    ],
)
def test_what_disturbed_a_run_is_flagged(others: float, stolen: float, spread: float, flags: set[str]) -> None:
    peaks = Peaks(source="calibrated", memory_bytes_per_s=1.0, flops_per_s={}, spread={"memory": spread})
    found = environment_flags((peaks,), Seen(others=others, stolen=stolen), num_cpus=2, niceness=0)
    assert found.keys() == flags
    assert ("memory 60%" in found.get("unsteady_peaks", "")) == ("unsteady_peaks" in flags)


def test_a_niced_run_is_flagged() -> None:
    found = environment_flags((), Seen(others=0.0, stolen=0.0), num_cpus=2, niceness=15)
    assert found == {"low_priority": "the engine ran at niceness 15: any other process went first"}
