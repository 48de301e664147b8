"""The loop of a launch: events from the engines to the lifecycle, its commands to the engines and into the store.

It decides nothing and measures nothing.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from cluster.agenda import Agenda
from cluster.engines import Engines
from cluster.inventory import LiveNode, alive_node_ids
from cluster.lifecycle import END_STATES, Lifecycle
from cluster.messages import (
    Begin,
    Cancelled,
    Command,
    EngineFailed,
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
from cluster.node import stored_summary
from moecap.lease import Lease
from moecap.records import Placement, RunSpec
from moecap.store import Store

POLL_S = 1.0
"""Longest wait for Ray: how soon a signal is seen."""
ROUND_S = 5.0
"""Period of the check for lost nodes and of ledger objects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A run changed its state."""

    run: RunKey
    label: str
    state: RunState
    why: str
    hostname: str
    summary: RunSummary | None
    """Of a run that was stored."""
    ended: int
    """Runs of the study in an end state, this one included."""
    planned: int
    """All runs of the study."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a launch ended."""

    states: Mapping[RunKey, RunState]
    left: int
    """Runs left out because of `--max-runs`."""

    @property
    def counts(self) -> dict[str, int]:
        """Runs per state."""
        return dict(Counter(str(state) for state in self.states.values()))

    @property
    def good(self) -> bool:
        """Whether every run that was not left out is stored or not needed."""
        return set(self.states.values()) <= {RunState.STORED, RunState.NOT_NEEDED}


def drive(
    agenda: Agenda, nodes: Sequence[LiveNode], store: Store, lease: Lease, report: Callable[[Progress], None]
) -> Outcome:
    """Run the agenda to its end. SIGINT and SIGTERM cancel it: engines stop, stored runs stay. LeaseHeldError, with
    every engine ended, when another driver took over."""
    driver = _Driver(agenda, nodes, store, lease, report)
    try:
        with _signals() as cancelled:
            driver.loop(cancelled)
    finally:
        driver.leave()
    return Outcome(states=driver.lifecycle.states, left=len(agenda.left))


class _Driver:
    def __init__(
        self,
        agenda: Agenda,
        nodes: Sequence[LiveNode],
        store: Store,
        lease: Lease,
        report: Callable[[Progress], None],
    ) -> None:
        self.lifecycle = Lifecycle(agenda)
        self._agenda, self._store, self._lease, self._report = agenda, store, lease, report
        self._nodes = {node.info.node_id: node for node in nodes}
        self._engines = Engines(dict(self._nodes), agenda.plan, store)
        self._attempts = {run: agenda.attempts.get(str(run), 0) for run in agenda.todo}
        self._ended = len(agenda.ended)
        self._ledger: list[dict[str, Any]] = []
        self._log_wanted: dict[int, list[tuple[str, int]]] = {}  # engine -> (run_id, attempt) that failed on it
        self._round_s = time.monotonic()
        self._finished = False

    def loop(self, cancelled: Callable[[], bool]) -> None:
        events: list[Event] = [Begin()]
        told = False
        while not self._finished:
            if cancelled() and not told:
                events.append(Cancelled())
                self._engines.hurry()
                told = True
            for event in events:
                happened = self._stopped(event) if isinstance(event, EngineStopped) else event
                for command in self.lifecycle.handle(happened):
                    self._do(command, happened)
            if told:
                self._flush()  # who cancels may end Ray, and then this process, too
            if not self._finished:
                events = self._await_events(look_for_nodes=not told)

    def leave(self) -> None:
        """Whatever happened: no engine stays, and what is known is in the ledger."""
        self._engines.end_all()
        self._flush()

    def _do(self, command: Command, event: Event) -> None:
        match command:
            case StartEngine():
                self._engines.start(command)
            case StartRun():
                self._engines.run(command, self._attempts[command.run])
            case StopEngine():
                self._engines.stop(command)
            case Record():
                self._record(command, event)
            case Finish():
                self._finished = True

    def _await_events(self, *, look_for_nodes: bool) -> list[Event]:
        """What happened next. Whether a node is gone is said before what happened on it: an engine that stopped with
        its node must not be started there again."""
        events = self._engines.events(POLL_S)
        self._lease.check()
        due = time.monotonic() - self._round_s >= ROUND_S
        if due:
            self._round_s = time.monotonic()
            self._flush()
        if look_for_nodes and (due or any(isinstance(event, WorkerLost | EngineStopped) for event in events)):
            events = [*self._lost_nodes(), *events]
        return events

    def _lost_nodes(self) -> Iterator[Event]:
        for node_id in sorted(self._nodes.keys() - alive_node_ids()):
            del self._nodes[node_id]
            yield NodeLost(node_id=node_id)

    def _flush(self) -> None:
        if self._ledger:
            self._store.append_ledger(self._ledger)
            self._ledger = []

    def _record(self, record: Record, event: Event) -> None:
        run, placement = record.run, record.placement
        stored = _summary_in(event) if record.state is RunState.STORED else None
        self._ended += record.state in END_STATES and run in self._attempts
        hostname = placement.hostname if placement else ""
        self._ledger.append(
            {
                "time_unix_s": time.time(), "run": str(run), "point_id": run.point_id, "repeat": run.repeat,
                "state": record.state, "why": record.why.partition("\n")[0] or None, "failure": record.failure,
                "hostname": hostname or None, "node_id": placement.node_id if placement else None,
                "run_id": stored.run_id if stored else None, "headline": stored.headline if stored else None,
            }
        )  # fmt: skip
        if record.failure is not None:
            self._keep_failure(record, event)
        spec = RunSpec(point=self._agenda.points[run.point_id], repeat=run.repeat)
        self._report(
            Progress(
                run=run, label=spec.label, state=record.state, why=record.why, hostname=hostname, summary=stored,
                ended=self._ended, planned=len(self.lifecycle.states) + len(self._agenda.left),
            )
        )  # fmt: skip

    def _keep_failure(self, record: Record, event: Event) -> None:
        run, placement = record.run, record.placement
        assert placement is not None and record.failure is not None, "only a run that was placed can fail"
        run_id = self._run_id(run, placement)
        attempt = self._attempts[run]
        self._store.write_failure(
            point_id=run.point_id, repeat=run.repeat, attempt=attempt, error=record.why, kind=record.failure,
            run_id=run_id,
        )  # fmt: skip
        self._attempts[run] += 1
        if isinstance(event, EngineFailed | RunFailed | WorkerLost | Hung):
            self._log_wanted.setdefault(event.engine_id, []).append((run_id, attempt))

    def _run_id(self, run: RunKey, placement: Placement) -> str:
        fingerprint = next(node.fingerprint for node in self._agenda.nodes if node.node_id == placement.node_id)
        return RunSpec(point=self._agenda.points[run.point_id], repeat=run.repeat).run_id(fingerprint)

    def _stopped(self, event: EngineStopped) -> EngineStopped:
        """With what only the store knows: whether the run that the engine was killed in had become whole."""
        self._keep_log(event)
        cut_short = self.lifecycle.run_cut_short(event.engine_id)
        if cut_short is None:
            return event
        return replace(event, stored=stored_summary(self._store, self._run_id(*cut_short)))

    def _keep_log(self, event: EngineStopped) -> None:
        """An engine's last words are known when it is gone: they go to every failure that it had."""
        for run_id, attempt in self._log_wanted.pop(event.engine_id, ()):
            if event.log is not None:
                self._store.write_engine_log(run_id, attempt, event.log)


def _summary_in(event: Event) -> RunSummary | None:
    """Of the run that an event tells to be whole."""
    match event:
        case RunStored():
            return event.summary
        case EngineStopped():
            return event.stored
        case _:
            return None


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came; a second one ends the driver at once."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
