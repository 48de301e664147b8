"""The loop of a launch with stand-ins for Ray's engines: what comes of a run that is whole before anyone is told."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleet import node, plan, point

from cluster import driver
from cluster.agenda import Held, prepare
from cluster.driver import drive
from cluster.inventory import LiveNode
from cluster.messages import EngineStarted, EngineStopped, Event, RunKey, RunState, StartEngine, StartRun, StopEngine
from moecap.lease import Lease
from moecap.records import Placement, RepeatsSpec, RunSpec
from moecap.run import Session
from moecap.store import Store
from moecap.telemetry.recorder import Recorder

HERE = node("h", num_cpus=1)
STUDY = plan(point(pass_s=0.0), repeats=RepeatsSpec(min=3, max=3))


class Interrupted:
    """In place of the engines of a launch: the first run is cancelled, by a signal to this process, before its worker
    can answer; `writes` says whether it became whole by then."""

    writes = True

    def __init__(self, nodes: Any, study: Any, store: Store) -> None:
        self._store, self._events = store, list[Event]()

    def start(self, command: StartEngine) -> None:
        self._events.append(EngineStarted(engine_id=command.engine_id))

    def run(self, command: StartRun, attempt: int) -> None:
        if self.writes:
            (one,) = STUDY.points
            where = Placement(node_id=HERE.node_id, hostname="h", kind="cpu", num_cpus=1)
            session = Session.open(model=one.model, system=one.system, placement=where, node=HERE, peaks=())
            spec = RunSpec(point=one, repeat=command.run.repeat)
            self._store.write_run(session.run(spec, study="t", telemetry=Recorder(hz=10.0)))
            session.close()
        os.kill(os.getpid(), signal.SIGTERM)

    def stop(self, command: StopEngine) -> None:
        self._events.append(EngineStopped(engine_id=command.engine_id))

    def events(self, timeout_s: float) -> list[Event]:
        happened, self._events = self._events, []
        return happened

    def hurry(self) -> None: ...

    def end_all(self) -> None: ...


@pytest.mark.parametrize("writes", [True, False])
def test_what_was_whole_when_it_was_cancelled_is_stored(
    writes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "Engines", type("Engines", (Interrupted,), {"writes": writes}))
    store = Store(str(tmp_path), "t")
    told = []
    lease = Lease.acquire(store.objects)
    live = LiveNode(info=HERE, agent=None)
    outcome = drive(prepare(replace(STUDY, store=str(tmp_path)), [HERE], Held()), [live], store, lease, told.append)
    run_id = RunSpec(point=STUDY.points[0]).run_id(HERE.fingerprint)
    first = RunKey(STUDY.points[0].point_id, 0)
    expected = RunState.STORED if writes else RunState.CANCELLED
    assert outcome.states[first] is expected
    assert {state for run, state in outcome.states.items() if run != first} == {RunState.CANCELLED}
    assert store.is_whole(run_id) is writes
    last = {entry["run"]: entry for entry in store.read_ledger()}[str(first)]
    assert (last["state"], last["run_id"]) == (expected, run_id if writes else None)
    assert [one.summary is not None for one in told if one.state is RunState.STORED] == [True] * writes
