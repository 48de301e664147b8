"""The life of every planned run, decided: events in, commands out. No Ray, no I/O, no clock.

One group of points (one model and system on one node) is served at a time on a host, by one warm engine; a host is
free again only when its engine is known to be gone. A run ends in exactly one end state. What a run, or its engine,
does wrong by itself ends it; what it loses with a worker or a node is tried again, at most MAX_SYSTEM_FAILURES times
in all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cluster.agenda import Agenda
from cluster.messages import (
    Begin,
    Cancelled,
    Command,
    EngineEvent,
    EngineFailed,
    EngineStarted,
    EngineStopped,
    Event,
    FailureKind,
    Finish,
    Hung,
    NodeLost,
    Record,
    RunFailed,
    RunKey,
    RunState,
    RunStored,
    StartEngine,
    StartRun,
    StopEngine,
    WorkerLost,
)
from cluster.place import Group, Placer, groups, place_points
from cluster.repeats import agree
from moecap.records import NodeInfo, Placement, Refusal

MAX_SYSTEM_FAILURES = 2
CANCELLED_BY_USER = "cancelled by the user"
END_STATES = frozenset(
    {
        RunState.STORED, RunState.FAILED, RunState.REFUSED, RunState.UNPLACEABLE, RunState.CANCELLED,
        RunState.NOT_NEEDED,
    }
)  # fmt: skip
TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    RunState.PLANNED: frozenset(
        {
            RunState.STARTING, RunState.RUNNING, RunState.FAILED, RunState.REFUSED, RunState.UNPLACEABLE,
            RunState.CANCELLED, RunState.NOT_NEEDED,
        }
    ),
    RunState.STARTING: frozenset({RunState.RUNNING, RunState.PLANNED, RunState.FAILED, RunState.CANCELLED}),
    RunState.RUNNING: frozenset({RunState.STORED, RunState.PLANNED, RunState.FAILED, RunState.CANCELLED}),
    **dict.fromkeys(END_STATES, frozenset[RunState]()),
}  # fmt: skip


@dataclass(slots=True)
class _Queue:
    """A group, with the runs that wait for its engine."""

    group: Group
    waiting: deque[RunKey] = field(default_factory=deque)
    """Next first; runs that ended meanwhile are skipped when their turn comes."""
    lost_starts: int = 0
    """Starts of its engine in a row that ended with a lost worker."""


@dataclass(slots=True)
class _Engine:
    """One start of a group's engine."""

    queue: _Queue
    current: RunKey | None
    """The run that it was started for, or that it runs; None while it stops."""
    cut_short: RunKey | None = None
    """The run that a cancellation killed it in: whether that became whole is known once the engine has stopped."""

    @property
    def placement(self) -> Placement:
        return self.queue.group.placement


class Lifecycle:
    """Tell it events with `handle`, do what it commands, until it says Finish."""

    def __init__(self, agenda: Agenda) -> None:
        self.agenda = agenda
        self.states: dict[RunKey, RunState] = {**agenda.ended, **dict.fromkeys(agenda.todo, RunState.PLANNED)}
        self._nodes: dict[str, NodeInfo] = {node.node_id: node for node in agenda.nodes}
        self._fingerprints = dict(agenda.fingerprints)
        self._rates = {point_id: list(rates) for point_id, rates in agenda.rates.items()}
        self._failures: dict[RunKey, int] = {}
        self._hosts: dict[str, deque[_Queue]] = {}  # host name -> queues that wait for it, next first
        self._engines: dict[int, _Engine] = {}
        self._busy: dict[str, int] = {}  # host name -> engine that holds it
        self._last_point: dict[str, str] = {}  # host name -> point that ran there last
        self._engines_started = 0
        self._unended = len(agenda.todo)
        self._begun = self._finished = False
        self._commands: list[Command] = []

    def handle(self, event: Event) -> list[Command]:
        """What to do about `event`. Events of engines that are gone, or that stop, change nothing."""
        self._commands = []
        match event:
            case Begin():
                self._begin()
            case Cancelled():
                self._cancel()
            case NodeLost():
                self._node_lost(event.node_id)
            case EngineStopped():
                self._engine_stopped(event)
            case _:
                engine = self._engines.get(event.engine_id)
                if engine is not None and engine.current is not None:
                    self._handle_engine(engine, engine.current, event)
        if self._begun and not self._finished and not self._unended and not self._engines:
            self._finished = True
            self._commands.append(Finish())
        return self._commands

    def _handle_engine(self, engine: _Engine, current: RunKey, event: EngineEvent) -> None:
        """An event of an engine that is up, or is starting, for the run `current`."""
        starting = self.states[current] is RunState.STARTING
        match event:
            case EngineStarted() if starting:
                engine.queue.lost_starts = 0
                self._run(event.engine_id, engine, current)
            case EngineFailed() if starting:
                self._fail_group(event.engine_id, engine, event.error, "own")
            case Hung() if starting:
                self._fail_group(event.engine_id, engine, event.error, "own")
            case Hung():
                self._fail(current, engine, event.error, "own")
                self._stop(event.engine_id, engine, kill=True)
            case WorkerLost():
                self._worker_lost(event.engine_id, engine, current, event.error)
            case RunStored() if event.run == current and not starting:
                self._stored(event.engine_id, engine, current, event.summary.headline.get("output_tokens_per_s"))
            case RunFailed() if event.run == current and not starting:
                self._run_failed(event.engine_id, engine, current, event)

    # -- the whole

    def _begin(self) -> None:
        self._begun = True
        for run, state in self.agenda.ended.items():
            placement = self.agenda.placements[run.point_id]
            if state in (RunState.REFUSED, RunState.UNPLACEABLE) and isinstance(placement, Refusal):
                self._commands.append(Record(run=run, state=state, why=f"{placement.reason}; {placement.remedy}"))
        self._enqueue(self.agenda.todo, self.agenda.placements)

    def _cancel(self) -> None:
        """A run under way ends with its engine: until that has stopped, its worker may still make it whole."""
        self._begun = True
        self._hosts.clear()
        for engine_id, engine in self._engines.items():
            if engine.current is not None:
                if self.states[engine.current] is RunState.RUNNING:
                    engine.cut_short = engine.current
                self._stop(engine_id, engine, kill=True)
        cut_short = {engine.cut_short for engine in self._engines.values()}
        for run, state in self.states.items():
            if state not in END_STATES and run not in cut_short:
                self._move(run, RunState.CANCELLED, CANCELLED_BY_USER)

    def run_cut_short(self, engine_id: int) -> tuple[RunKey, Placement] | None:
        """The run that a cancellation killed this engine in, and where."""
        engine = self._engines.get(engine_id)
        return None if engine is None or engine.cut_short is None else (engine.cut_short, engine.placement)

    def _node_lost(self, node_id: str) -> None:
        """Runs that were to be done there go elsewhere, as far as their points may move."""
        if self._nodes.pop(node_id, None) is None:
            return
        displaced: list[RunKey] = []
        for engine_id, engine in self._engines.items():
            if engine.placement.node_id == node_id:
                if engine.current is not None:
                    self._lose(engine.current, engine, f"node {engine.placement.hostname} was lost")
                    self._stop(engine_id, engine, kill=True)
                displaced += self._drain(engine.queue)
        for queues in self._hosts.values():
            for queue in [queue for queue in queues if queue.group.placement.node_id == node_id]:
                queues.remove(queue)
                displaced += self._drain(queue)
        self._replace(displaced)

    def _replace(self, runs: list[RunKey]) -> None:
        placer = Placer(
            nodes=tuple(self._nodes.values()), points_on=self._points_waiting(), weight_bytes=self.agenda.weight_bytes
        )
        points = {run.point_id: self.agenda.points[run.point_id] for run in runs}
        placements = place_points(points.items(), placer, self._fingerprints)
        for run in runs:
            placement = placements[run.point_id]
            if isinstance(placement, Refusal):
                self._move(run, RunState.UNPLACEABLE, f"{placement.reason}; {placement.remedy}")
        self._enqueue([run for run in runs if self.states[run] is RunState.PLANNED], placements)

    # -- hosts and their queues

    def _enqueue(self, runs: Iterable[RunKey], placements: Mapping[str, Placement | Refusal]) -> None:
        """Group the runs by engine and start what can start now."""
        listed = list(runs)
        points = {run.point_id: self.agenda.points[run.point_id] for run in listed}
        queue_of: dict[str, _Queue] = {}
        for group in groups(points.items(), placements):
            queue = _Queue(group=group)
            self._hosts.setdefault(group.placement.hostname, deque()).append(queue)
            queue_of |= dict.fromkeys(group.point_ids, queue)
        for run in listed:
            queue_of[run.point_id].waiting.append(run)
        for host in {queue.group.placement.hostname: None for queue in queue_of.values()}:
            self._start_on(host)

    def _start_on(self, host: str) -> None:
        """Start the next group of a host that is free."""
        queues = self._hosts.get(host)
        while queues and host not in self._busy:
            queue = queues.popleft()
            run = self._next(queue)
            if run is None:
                continue
            self._engines_started += 1
            engine_id = self._engines_started
            self._engines[engine_id] = _Engine(queue=queue, current=run)
            self._busy[host] = engine_id
            group = queue.group
            self._move(run, RunState.STARTING, placement=group.placement)
            self._commands.append(
                StartEngine(engine_id=engine_id, model=group.model, system=group.system, placement=group.placement)
            )

    def _engine_stopped(self, event: EngineStopped) -> None:
        engine = self._engines.get(event.engine_id)
        if engine is None or engine.current is not None:
            return
        if engine.cut_short is not None:
            state, why = (RunState.STORED, "") if event.stored else (RunState.CANCELLED, CANCELLED_BY_USER)
            self._move(engine.cut_short, state, why, placement=engine.placement)
        del self._engines[event.engine_id]
        host = engine.placement.hostname
        del self._busy[host]
        self._hosts.setdefault(host, deque()).appendleft(engine.queue)
        self._start_on(host)

    def _stop(self, engine_id: int, engine: _Engine, *, kill: bool) -> None:
        engine.current = None
        self._commands.append(StopEngine(engine_id=engine_id, kill=kill))

    def _next(self, queue: _Queue) -> RunKey | None:
        while queue.waiting:
            run = queue.waiting.popleft()
            if self.states[run] is RunState.PLANNED:
                return run
        return None

    def _drain(self, queue: _Queue) -> Iterator[RunKey]:
        while (run := self._next(queue)) is not None:
            yield run

    def _points_waiting(self) -> dict[str, int]:
        """Node -> points that are to be done there."""
        waiting = dict.fromkeys(self._nodes, 0)
        running = [engine.queue for engine in self._engines.values()]
        for queue in [*running, *(queue for queues in self._hosts.values() for queue in queues)]:
            if queue.group.placement.node_id in waiting:
                waiting[queue.group.placement.node_id] += len(queue.group.point_ids)
        return waiting

    # -- one run

    def _run(self, engine_id: int, engine: _Engine, run: RunKey) -> None:
        host = engine.placement.hostname
        rest = self._last_point.get(host, run.point_id) != run.point_id
        self._last_point[host] = run.point_id
        cooldown_s = self.agenda.plan.cooldown_s if rest else 0.0
        engine.current = run
        self._move(run, RunState.RUNNING, placement=engine.placement)
        self._commands.append(StartRun(engine_id=engine_id, run=run, cooldown_s=cooldown_s))

    def _stored(self, engine_id: int, engine: _Engine, run: RunKey, rate: float | None) -> None:
        self._move(run, RunState.STORED, placement=engine.placement)
        node = self._nodes[engine.placement.node_id]
        self._fingerprints.setdefault(run.point_id, node.fingerprint)
        if rate is not None:
            self._rates.setdefault(run.point_id, []).append(rate)
            self._settle(run.point_id)
        following = self._next(engine.queue)
        if following is None:
            self._stop(engine_id, engine, kill=False)
        else:
            self._run(engine_id, engine, following)

    def _settle(self, point_id: str) -> None:
        """Once a point's repeats agree, those that still wait are not needed."""
        if agree(self._rates[point_id], self.agenda.plan.repeats):
            for repeat in range(self.agenda.plan.repeats.max):
                run = RunKey(point_id, repeat)
                if self.states.get(run) is RunState.PLANNED:
                    self._move(run, RunState.NOT_NEEDED, "the repeats before it agree within repeats.ci95_rel_width")

    def _run_failed(self, engine_id: int, engine: _Engine, run: RunKey, event: RunFailed) -> None:
        """What the engine is worth after a failure is unknown: the next run gets a fresh one."""
        if event.kind == "own":
            self._fail(run, engine, event.error, "own")
        else:
            self._lose(run, engine, event.error)
        self._stop(engine_id, engine, kill=False)

    def _worker_lost(self, engine_id: int, engine: _Engine, run: RunKey, error: str) -> None:
        """A worker that is lost again and again while it starts would take every run of its group with it, slowly."""
        if self.states[run] is RunState.STARTING:
            engine.queue.lost_starts += 1
            if engine.queue.lost_starts >= MAX_SYSTEM_FAILURES:
                self._fail_group(engine_id, engine, error, "system")
                return
        self._lose(run, engine, error)
        self._stop(engine_id, engine, kill=True)

    def _lose(self, run: RunKey, engine: _Engine, error: str) -> None:
        """A system failure: the run waits for another attempt, next in its queue, or has had enough of them."""
        self._failures[run] = self._failures.get(run, 0) + 1
        if self._failures[run] >= MAX_SYSTEM_FAILURES:
            self._fail(run, engine, error, "system")
        else:
            self._move(run, RunState.PLANNED, error, placement=engine.placement, failure="system")
            engine.queue.waiting.appendleft(run)

    def _fail_group(self, engine_id: int, engine: _Engine, error: str, kind: FailureKind) -> None:
        for run in [engine.current, *self._drain(engine.queue)]:
            if run is not None:
                self._fail(run, engine, error, kind)
        self._stop(engine_id, engine, kill=True)

    def _fail(self, run: RunKey, engine: _Engine, error: str, kind: FailureKind) -> None:
        self._move(run, RunState.FAILED, error, placement=engine.placement, failure=kind)

    def _move(
        self,
        run: RunKey,
        state: RunState,
        why: str = "",
        placement: Placement | None = None,
        failure: FailureKind | None = None,
    ) -> None:
        """The one place where a run changes state."""
        before = self.states[run]
        if state not in TRANSITIONS[before]:
            raise AssertionError(f"run {run} can't go from {before} to {state}")
        self.states[run] = state
        self._unended -= state in END_STATES
        self._commands.append(Record(run=run, state=state, why=why, placement=placement, failure=failure))
