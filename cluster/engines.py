"""The hands of the driver: starts, runs and ends engines in Runner actors, and turns what Ray answers into events.

Every wait has a deadline. It decides nothing: `cluster/lifecycle.py` does.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.inventory import LiveNode, on_node
from cluster.messages import (
    EngineFailed,
    EngineStarted,
    EngineStopped,
    Event,
    FailureKind,
    Hung,
    RunFailed,
    RunKey,
    RunStored,
    StartEngine,
    StartRun,
    StopEngine,
    WorkerLost,
)
from cluster.node import Runner
from moecap.errors import ClusterError, StoreError
from moecap.records import Placement, RunSpec, StudyPlan
from moecap.store import Store

SEARCH_DEADLINES = 4
"""A run that searches for its load may take so many of the study's deadlines: its trials and the run itself."""
START_GRACE_S = 90.0
"""On top of the study's deadline for an engine start: a new process, its imports, the node's calibration, its devices'
idle power."""
DEVICE_GRACE_S = 20.0
"""Besides, for the calibration of each of its devices."""
NO_PROCESS = "Ray started no process for the engine: others may hold the node's CPUs or devices"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""That Ray puts into tracebacks."""
CLOSE_S = 30.0
HURRIED_KILL_S = 10.0
KILL_S = 45.0
"""A kill is quick; longer than Ray takes to notice that a node is gone, which must be known before it is free."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Engine:
    """An engine that is up, or on its way up or down."""

    runner: Any
    processes: Any
    """Ray reference to its EngineProcesses."""
    node: LiveNode


@dataclass(frozen=True, kw_only=True, slots=True)
class _Awaited:
    """What a pending Ray reference will answer."""

    engine_id: int
    action: Literal["start", "run", "close", "kill"]
    deadline_s: float
    """`time.monotonic()` at which it is overdue."""
    run: RunKey | None = None
    stated_s: float | None = None
    """What people are told that it had; None: the study's deadline."""


class Engines:
    """All engines of a launch."""

    def __init__(self, nodes: Mapping[str, LiveNode], plan: StudyPlan, store: Store) -> None:
        self._nodes, self._store = nodes, store
        self._points = {point.point_id: point for point in plan.points}
        self._deadline_s, self._calibrates = plan.deadline_s, plan.peaks == "calibrated"
        self._engines: dict[int, _Engine] = {}
        self._awaited: dict[Any, _Awaited] = {}
        self._at_once: list[Event] = []
        self._kill_s = KILL_S

    def hurry(self) -> None:
        """Wait no longer for a kill than it takes where Ray still answers: a signal to the process group has ended an
        embedded Ray together with its workers, and nobody is left to say so."""
        self._kill_s = HURRIED_KILL_S

    def start(self, command: StartEngine) -> None:
        """Answered by EngineStarted, EngineFailed, WorkerLost or Hung."""
        node, placement = self._nodes[command.placement.node_id], command.placement
        runner = _runner(placement)
        engine = _Engine(runner=runner, processes=runner.processes.remote(), node=node)
        self._engines[command.engine_id] = engine
        # `after`: the new process would disturb what is measured while it starts; its engine starts afterwards
        idle = node.agent.measure_idle.remote(placement.device_uuids, after=engine.processes)
        calibrated: Any = ()
        grace_s = START_GRACE_S
        if self._calibrates:
            calibrated = node.agent.calibrate.remote(node.info, placement, after=engine.processes)
            grace_s += DEVICE_GRACE_S * len(placement.device_uuids)
        opened = runner.open.remote(
            model=command.model, system=command.system, placement=placement, node=node.info, agent=node.agent,
            calibrated=calibrated, store=self._store, after=idle,
        )  # fmt: skip
        self._await(opened, command.engine_id, "start", self._deadline_s + grace_s)

    def run(self, command: StartRun, attempt: int) -> None:
        """Attempt number `attempt` at a run. Answered by RunStored, RunFailed, WorkerLost or Hung."""
        spec = RunSpec(point=self._points[command.run.point_id], repeat=command.run.repeat)
        ref = self._engines[command.engine_id].runner.run.remote(spec, command.cooldown_s, attempt)
        searches = spec.point.load is not None and spec.point.load.search is not None
        allowed_s = self._deadline_s * (SEARCH_DEADLINES if searches else 1)
        self._await(ref, command.engine_id, "run", allowed_s + command.cooldown_s, run=command.run, stated_s=allowed_s)

    def stop(self, command: StopEngine) -> None:
        """Answered by EngineStopped, whatever happens."""
        self._awaited = {ref: one for ref, one in self._awaited.items() if one.engine_id != command.engine_id}
        if command.kill:
            self._kill(command.engine_id)
        else:
            ref = self._engines[command.engine_id].runner.close.remote()
            self._await(ref, command.engine_id, "close", CLOSE_S)

    def events(self, timeout_s: float) -> list[Event]:
        """What happened, waiting at most `timeout_s` for something to happen."""
        now_s = time.monotonic()
        soonest_s = min((one.deadline_s for one in self._awaited.values()), default=now_s)
        wait_s = 0.0 if self._at_once else max(0.0, min(timeout_s, soonest_s - now_s))
        ready: list[Any] = []
        if self._awaited:
            ready, _ = ray.wait(list(self._awaited), num_returns=1, timeout=wait_s)
            if ready:
                ready, _ = ray.wait(list(self._awaited), num_returns=len(self._awaited), timeout=0)
        happened, self._at_once = self._at_once, []
        for ref in ready:
            happened += self._answered(ref, self._awaited.pop(ref))
        return happened + list(self._overdue())

    def end_all(self) -> None:
        """Kill what is still up and wait for it: the driver is leaving."""
        for engine_id in list(self._engines):
            self.stop(StopEngine(engine_id=engine_id, kill=True))
        while self._engines:
            self.events(self._kill_s)

    def _await(
        self,
        ref: Any,
        engine_id: int,
        action: Literal["start", "run", "close", "kill"],
        seconds: float,
        *,
        run: RunKey | None = None,
        stated_s: float | None = None,
    ) -> None:
        deadline_s = time.monotonic() + seconds
        self._awaited[ref] = _Awaited(
            engine_id=engine_id, action=action, deadline_s=deadline_s, run=run, stated_s=stated_s
        )

    def _answered(self, ref: Any, one: _Awaited) -> Iterator[Event]:
        match one.action:
            case "start" | "run":
                yield _outcome(ref, one)
            case "close":  # whether or not it closed cleanly, nothing of it may stay
                self._kill(one.engine_id)
            case "kill":
                del self._engines[one.engine_id]
                yield EngineStopped(engine_id=one.engine_id, log=_printed(ref))

    def _overdue(self) -> Iterator[Event]:
        now_s = time.monotonic()
        for ref, one in [(ref, one) for ref, one in self._awaited.items() if one.deadline_s <= now_s]:
            del self._awaited[ref]
            match one.action:
                case "start" if not self._has_process(one.engine_id):
                    yield WorkerLost(engine_id=one.engine_id, error=NO_PROCESS)
                case "start" | "run":
                    what = "engine start" if one.action == "start" else "run"
                    had_s = one.stated_s or self._deadline_s
                    yield Hung(engine_id=one.engine_id, error=f"{what} passed its deadline of {had_s:g} s")
                case _:
                    yield from self._answered(ref, one)

    def _has_process(self, engine_id: int) -> bool:
        """Whether Ray ever found room for the engine's process, which answers at once."""
        known, _ = ray.wait([self._engines[engine_id].processes], timeout=0)
        return bool(known)

    def _kill(self, engine_id: int) -> None:
        engine = self._engines[engine_id]
        known = self._has_process(engine_id)
        ray.kill(engine.runner, no_restart=True)
        # A reference that failed (the worker died while it started) makes this call fail too: nothing to end then.
        ended = engine.node.agent.end_processes.remote(engine.processes) if known else None
        if ended is None:
            del self._engines[engine_id]
            self._at_once.append(EngineStopped(engine_id=engine_id))
        else:
            self._await(ended, engine_id, "kill", self._kill_s)


def _runner(placement: Placement) -> Any:
    """An actor on the placed node, with all the CPUs and the very devices that were placed."""
    environment = {"OMP_NUM_THREADS": str(placement.num_cpus)}
    if placement.device_uuids:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(placement.device_uuids)
        environment["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] = "1"
    options = {
        "num_cpus": placement.num_cpus, "num_gpus": len(placement.device_uuids), "max_restarts": 0,
        "scheduling_strategy": on_node(placement.node_id), "runtime_env": {"env_vars": environment},
    }  # fmt: skip
    return ray.remote(Runner).options(**options).remote()


def _printed(ref: Any) -> str | None:
    """What an engine printed; None when its node is gone, or was too slow to say."""
    try:
        log: str | None = ray.get(ref, timeout=0.1)
    except RayError:
        return None
    return log


def _outcome(ref: Any, one: _Awaited) -> Event:
    """The seam where Ray's exceptions become events."""
    try:
        summary = ray.get(ref, timeout=0.1)
    except RayTaskError as error:
        kind: FailureKind = "system" if isinstance(error.cause, ClusterError | StoreError | RayError) else "own"
        text = f"{type(error.cause).__name__}: {error.cause}\n\n{COLOURS.sub('', str(error))}"
        if one.run is not None:
            return RunFailed(engine_id=one.engine_id, run=one.run, error=text, kind=kind)
        if kind == "system":
            return WorkerLost(engine_id=one.engine_id, error=text)
        return EngineFailed(engine_id=one.engine_id, error=text)
    except RayError as error:
        return WorkerLost(engine_id=one.engine_id, error=f"{type(error).__name__}: {error}")
    if one.run is None:
        return EngineStarted(engine_id=one.engine_id)
    return RunStored(engine_id=one.engine_id, run=one.run, summary=summary)
