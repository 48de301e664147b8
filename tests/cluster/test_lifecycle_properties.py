"""Whatever happens, in whatever order: a fleet that breaks at random, driven by the real lifecycle."""

from __future__ import annotations

from random import Random

from fleet import accuracy_point, node, plan, point
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.agenda import Held, prepare
from cluster.lifecycle import END_STATES, MAX_SYSTEM_FAILURES, TRANSITIONS, Lifecycle
from cluster.messages import (
    Begin,
    Cancelled,
    Command,
    EngineFailed,
    EngineStarted,
    EngineStopped,
    Event,
    Finish,
    Hung,
    NodeLost,
    Record,
    RunFailed,
    RunKey,
    RunState,
    RunStored,
    RunSummary,
    StartEngine,
    StartRun,
    StopEngine,
    WorkerLost,
)
from moecap.records import RepeatsSpec

POINTS = [point("a"), point("a", concurrency=8), accuracy_point("a"), point("b"), point("c"), point("g", kind="gpu")]
NODES = [node("n1"), node("n2"), node("n3", cpu_model="another")]


class Fleet:
    """Obeys commands, checks them against what it knows, and answers with what `draw` picks."""

    def __init__(self, life: Lifecycle) -> None:
        self.life = life
        self.engines: dict[int, str] = {}  # id -> starting | running | stopping
        self.host_of: dict[int, str] = {}
        self.run_of: dict[int, RunKey] = {}
        self.cut_short: set[int] = set()  # engines killed by a cancellation in a run that became whole
        self.stored: set[RunKey] = set()
        self.last: dict[RunKey, RunState] = {}
        self.system_failures: dict[RunKey, int] = {}
        self.finished = False

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            assert not self.finished, f"{command} after Finish"
            match command:
                case StartEngine():
                    host = command.placement.hostname
                    assert host not in self.host_of.values(), f"two engines on {host}"
                    assert command.engine_id not in self.engines
                    self.engines[command.engine_id], self.host_of[command.engine_id] = "starting", host
                case StartRun():
                    assert command.run not in self.stored, "a stored run starts again"
                    assert self.engines[command.engine_id] in ("starting", "running")
                    self.engines[command.engine_id] = "running"
                    self.run_of[command.engine_id] = command.run
                case StopEngine():
                    assert self.engines[command.engine_id] != "stopping"
                    self.engines[command.engine_id] = "stopping"
                case Record():
                    before = self.last.get(command.run, RunState.PLANNED)
                    assert command.state in TRANSITIONS[before]
                    self.last[command.run] = command.state
                    if command.failure == "system":
                        self.system_failures[command.run] = self.system_failures.get(command.run, 0) + 1
                case Finish():
                    self.finished = True

    def answers(self, engine_id: int) -> list[Event]:
        match self.engines[engine_id]:
            case "starting":
                return [
                    EngineStarted(engine_id=engine_id), EngineStarted(engine_id=engine_id),
                    EngineFailed(engine_id=engine_id, error="e"), Hung(engine_id=engine_id, error="e"),
                    WorkerLost(engine_id=engine_id, error="e"),
                ]  # fmt: skip
            case "running":
                run = self.run_of[engine_id]
                summary = RunSummary(run_id="r", headline={"output_tokens_per_s": 100.0}, flags={}, checks_failed={})
                good = RunStored(engine_id=engine_id, run=run, summary=summary)
                return [
                    good, good, good, RunFailed(engine_id=engine_id, run=run, error="e", kind="own"),
                    RunFailed(engine_id=engine_id, run=run, error="e", kind="system"),
                    WorkerLost(engine_id=engine_id, error="e"), Hung(engine_id=engine_id, error="e"),
                ]  # fmt: skip
            case _:
                summary = RunSummary(run_id="r", headline={}, flags={}, checks_failed={})
                whole = EngineStopped(engine_id=engine_id, stored=summary)
                return [whole if engine_id in self.cut_short else EngineStopped(engine_id=engine_id)]

    def tell(self, event: Event) -> None:
        if isinstance(event, RunStored) and self.engines.get(event.engine_id) == "running":
            self.stored.add(event.run)
        if isinstance(event, Cancelled):  # every other run gets whole before its engine is gone
            running = {one for one, state in self.engines.items() if state == "running"}
            self.cut_short |= {one for one in running if one % 2}
        if isinstance(event, EngineStopped) and event.engine_id in self.cut_short:
            self.stored.add(self.run_of[event.engine_id])
        if isinstance(event, EngineStopped) and self.engines.get(event.engine_id) == "stopping":
            del self.engines[event.engine_id], self.host_of[event.engine_id]
        self.obey(self.life.handle(event))


@settings(max_examples=300, deadline=None)
@given(chance=st.integers(0, 2**32).map(Random), repeats=st.integers(1, 4), order=st.sampled_from(["listed", "random"]))
def test_every_run_ends_once_whatever_breaks(chance: Random, repeats: int, order: str) -> None:
    study = plan(*POINTS, repeats=RepeatsSpec(min=min(2, repeats), max=repeats), order=order)
    fleet = Fleet(Lifecycle(prepare(study, NODES, Held())))
    fleet.tell(Begin())
    stale: list[Event] = []
    for _ in range(400):
        if fleet.finished:
            break
        choices = [event for engine_id in fleet.engines for event in fleet.answers(engine_id)]
        if chance.random() < 0.05:
            choices = [*(NodeLost(node_id=one.node_id) for one in NODES), *stale]
        if chance.random() < 0.01:
            choices = [Cancelled()]
        event = chance.choice(choices)
        stale += [] if isinstance(event, EngineStopped | RunStored) else [event]
        fleet.tell(event)
    states = fleet.life.states
    assert fleet.finished, "the launch never finished"
    assert not fleet.engines
    assert len(states) == 5 * repeats + 1
    assert set(states.values()) <= END_STATES
    assert {run for run, state in states.items() if state is RunState.STORED} == fleet.stored
    assert max(fleet.system_failures.values(), default=0) <= MAX_SYSTEM_FAILURES


def test_end_states_have_no_way_out() -> None:
    assert {state for state in RunState if not TRANSITIONS[state]} == END_STATES
    assert set(TRANSITIONS) == set(RunState)
