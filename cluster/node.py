"""The actors of a node: NodeAgent speaks for the machine, Runner holds one engine and measures on it.

Both are plain classes; who creates them makes them actors. A Runner writes its runs to the store itself, so that
records never pass through the driver. Nothing here decides what runs where.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil
import ray
from ray.exceptions import RayError

import moecap
from cluster.enginelog import output_files, read_log
from cluster.messages import RunSummary
from moecap.doctor.facts import NodeFacts, look
from moecap.engine.process import processes_of
from moecap.errors import ClusterError, EngineError
from moecap.hardware.calibrated import parts_of_node, parts_of_placement, placed_peaks
from moecap.hardware.calibration import Calibrations, Known, conditions
from moecap.hardware.detect import detect_node
from moecap.hardware.identify import rated_peaks
from moecap.metrics.reduce import headline
from moecap.records import Calibration, ModelSpec, NodeInfo, Peaks, Placement, RunSpec, SystemSpec
from moecap.run import STEADY_WINDOW, Session
from moecap.store import RunData, Store
from moecap.telemetry.base import Telemetry, make_device_samplers
from moecap.telemetry.idle import IdlePower, idle_powers
from moecap.telemetry.recorder import Recorder

TELEMETRY_HZ = 10.0
IDLE_SAMPLERS = ("nvml", "amd")
NO_IDLE = IdlePower(reason="it was not measured: the node's agent was restarted since")
ANSWER_TIMEOUT_S = 30.0
RUNNER_EXIT_S = 3.0
PROCESS_EXIT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineProcesses:
    """A Runner's process and those that its engine starts."""

    group_id: int
    output_files: tuple[str, ...]


class NodeAgent:
    """One per node, in a process of its own: what it is, what it can do, what it does while a run goes on."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._calibrations = Calibrations()
        self._idle: dict[str, IdlePower] = {}

    def version(self) -> str:
        """Of the moecap that this node would run."""
        return moecap.__version__

    def describe(self, node_id: str, labels: Mapping[str, str]) -> NodeInfo:
        """The machine, as seen from itself."""
        return detect_node(node_id, labels)

    def calibrate(self, node: NodeInfo, placement: Placement, after: object = None) -> tuple[Calibration, ...]:
        """What the peaks of a placement rest on, measured unless it is known; unknown, with the reason, where that
        fails. Pass what must have happened before as `after`: Ray waits for it."""
        del after
        parts = parts_of_placement(node, placement, conditions(placement.device_uuids))
        return tuple(known.calibration for known in self._calibrations.of(parts))

    def calibrate_all(self, node: NodeInfo, again: bool) -> list[Known]:
        """Every part of the node."""
        parts = parts_of_node(node, conditions([device.uuid for device in node.devices]))
        return self._calibrations.of(parts, again=again)

    def look(self, store: str) -> NodeFacts:
        """What this node shows to `moecap-cluster doctor`; `store` is where results would go."""
        return look(store)

    def measure_idle(self, device_uuids: Sequence[str], after: object = None) -> None:
        """What these devices draw before anything runs on them; once, and at once where there is none. Pass what must
        have happened before as `after`, as for `calibrate`."""
        del after
        new = [uuid for uuid in device_uuids if uuid not in self._idle]
        if not new:
            return
        try:
            self._idle |= idle_powers(make_device_samplers(IDLE_SAMPLERS), new)
        except Exception as error:  # noqa: BLE001 - the engine can do without; the reason is kept in the record
            self._idle |= dict.fromkeys(new, IdlePower(reason=f"{type(error).__name__}: {error}"))

    def start_telemetry(self, engine_pid: int, device_uuids: Sequence[str]) -> None:
        """Sample this host and these of its devices. A recording that a lost engine left open is dropped."""
        left_open, self._recorder = self._recorder, None
        if left_open is not None:
            left_open.stop()
        recorder = Recorder(hz=TELEMETRY_HZ)
        recorder.start(engine_pid, device_uuids)
        self._recorder = recorder  # one that couldn't start leaves nothing to stop

    def stop_telemetry(self) -> Telemetry:
        """What was sampled since the start."""
        if self._recorder is None:
            raise ClusterError("telemetry was not started, or its node agent was restarted meanwhile")
        recorder, self._recorder = self._recorder, None
        telemetry = recorder.stop()
        facts = {uuid: self._idle.get(uuid, NO_IDLE).told_in(one) for uuid, one in telemetry.device_facts.items()}
        return replace(telemetry, device_facts=facts)

    def end_processes(self, processes: EngineProcesses) -> str | None:
        """See that every process of an engine is gone: its Runner, which Ray was told to kill, then all others. The
        answer is the end of what they printed."""
        _end_group(processes.group_id)
        return read_log(processes.output_files, os.environ)


class Runner:
    """Holds one warm engine and measures runs on it."""

    def __init__(self) -> None:
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)  # whatever the engine starts can then be ended as one

    def processes(self) -> EngineProcesses:
        """The group that this process and the engine's own processes belong to, and where they print."""
        return EngineProcesses(group_id=os.getpgrp(), output_files=output_files())

    def open(
        self,
        *,
        model: ModelSpec,
        system: SystemSpec,
        placement: Placement,
        node: NodeInfo,
        agent: Any,
        calibrated: tuple[Calibration, ...],
        store: Store,
        after: object = None,
    ) -> None:
        """Start the engine. Raises EngineError, ConfigError or MissingDependencyError when it can't. Pass what must
        have happened before as `after`."""
        del after
        self._node, self._store, self._telemetry = node, store, _RemoteTelemetry(agent)
        peaks = _peaks(node, placement, calibrated)
        self._session = Session.open(
            model=model, system=system, placement=placement, node=node, peaks=peaks, calibration=calibrated
        )

    def run(self, spec: RunSpec, cooldown_s: float, attempt: int) -> RunSummary:
        """Measure and store. A run that is whole already (its worker died before it could say so) is left alone. One
        that can't be evaluated is kept as what attempt number `attempt` recorded, and is an EngineError."""
        run_id = spec.run_id(self._node.fingerprint)
        if (before := stored_summary(self._store, run_id)) is not None:
            return before
        time.sleep(cooldown_s)
        run = self._session.run(spec, study=self._store.study, telemetry=self._telemetry)
        if STEADY_WINDOW in run.manifest.checks_failed:
            self._store.write_failed_run(run, attempt)
            raise EngineError(f"no steady window: {run.manifest.checks_failed[STEADY_WINDOW]}")
        self._store.write_run(run)
        return _summary(run)

    def close(self) -> None:
        """Stop the engine."""
        self._session.close()


class _RemoteTelemetry:
    """The node agent's telemetry, for a Session."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def start(self, engine_pid: int, device_uuids: Sequence[str]) -> None:
        self._ask(self._agent.start_telemetry.remote(engine_pid, tuple(device_uuids)))

    def stop(self) -> Telemetry:
        telemetry: Telemetry = self._ask(self._agent.stop_telemetry.remote())
        return telemetry

    def _ask(self, ref: Any) -> Any:
        try:
            return ray.get(ref, timeout=ANSWER_TIMEOUT_S)
        except RayError as error:
            raise ClusterError(f"the node agent gave no telemetry: {error}") from error


def stored_summary(store: Store, run_id: str) -> RunSummary | None:
    """Of a run that is whole; None when it isn't."""
    return _summary(store.load_run(run_id)) if store.is_whole(run_id) else None


def _summary(run: RunData) -> RunSummary:
    manifest = run.manifest
    return RunSummary(
        run_id=manifest.run_id, headline=headline(run), flags=manifest.flags, checks_failed=manifest.checks_failed
    )


def _peaks(node: NodeInfo, placement: Placement, calibrated: Sequence[Calibration]) -> tuple[Peaks, ...]:
    """Every peak source that is known for the placement."""
    measured = placed_peaks(placement, calibrated)
    known = () if measured is None else (measured,)
    placed = [device for device in node.devices if device.uuid in placement.device_uuids]
    return (*known, rated_peaks(placed)) if placed else known


def _end_group(group_id: int) -> None:
    _end_members(group_id)
    started = processes_of(group_id)  # programs of its own groups, which end once the process that started them has
    _, left = psutil.wait_procs(started, timeout=PROCESS_EXIT_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=PROCESS_EXIT_S)


def _end_members(group_id: int) -> None:
    members = [process for process in psutil.process_iter() if _group_of(process.pid) == group_id]
    psutil.wait_procs([process for process in members if process.pid == group_id], timeout=RUNNER_EXIT_S)
    try:
        os.killpg(group_id, signal.SIGKILL)
    except ProcessLookupError:
        return
    psutil.wait_procs(members, timeout=PROCESS_EXIT_S)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
