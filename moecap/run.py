"""One RunSpec on one machine: warm up, measure, hand over records. It knows no Ray and writes nothing.

A `Session` is one warm engine; every run of the points that share it goes through `Session.run`.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from moecap.accuracy import MAX_ANSWER_TOKENS, grade, load_task
from moecap.engine import ENGINES
from moecap.engine.base import Engine, EngineFacts
from moecap.errors import ConfigError
from moecap.hardware.otherload import OtherLoad, Seen
from moecap.hardware.timing import UNSTEADY_SPREAD
from moecap.records import (
    Calibration,
    ClientRecord,
    LoadSpec,
    Manifest,
    ModelSpec,
    NodeInfo,
    PassRecord,
    Peaks,
    Phase,
    Placement,
    Request,
    RequestRecord,
    RoutingRecord,
    RunSpec,
    SampleRecord,
    SearchRecord,
    ServeRecord,
    SystemSpec,
    TierRecord,
    Window,
)
from moecap.registry import resolve
from moecap.schema import DEVICES, HOSTS, PASSES, REQUESTS, ROUTING, SAMPLES, SCHEMA_VERSION, TIERS, Rows, table_of
from moecap.store import RunData
from moecap.telemetry.base import Telemetry
from moecap.trials import LoadFinder
from moecap.windows import load_check, slow_client, steady_window
from moecap.workload import WORKLOADS
from moecap.workload.arrivals import with_arrivals
from moecap.workload.base import Workload

PACKAGES = ("moecap", "torch", "transformers", "ray", "numpy", "pyarrow", "aiohttp")
STEADY_WINDOW = "steady_window"
"""Check that a performance run must pass to be one."""
DUMMY_WEIGHTS = "random weights: no claim about routing or accuracy"


UNREAD = dict.fromkeys(("power_cap_w", "clock_policy"), "no sampler reads the settings of CPUs")
"""Of runs that compute on the host; devices tell theirs in `device_facts`."""


class TelemetryHandle(Protocol):
    """Something that samples the host while a run goes on; in a fleet it lives in another process."""

    def start(self, engine_pid: int, device_uuids: Sequence[str]) -> None:
        """Begin sampling the host and these of its devices."""

    def stop(self) -> Telemetry:
        """End sampling and hand over what was read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """What one run recorded."""

    serve: ServeRecord
    windows: tuple[Window, ...]
    samples: tuple[SampleRecord, ...] = ()
    no_window: str = ""
    """Why there is no window."""
    search: SearchRecord | None = None
    load_held: str | None = None
    """What was wrong with the load; None: nothing can be said."""


class Session:
    """One warm engine on one placement."""

    def __init__(
        self, *, engine: Engine, facts: EngineFacts, model: ModelSpec, placement: Placement, node: NodeInfo,
        peaks: tuple[Peaks, ...], calibration: tuple[Calibration, ...] = (),
    ) -> None:  # fmt: skip
        self._engine, self._facts, self._model = engine, facts, model
        self._placement, self._node, self._peaks, self._calibration = placement, node, peaks, calibration
        self._finders: dict[str, LoadFinder] = {}

    @classmethod
    def open(
        cls, *, model: ModelSpec, system: SystemSpec, placement: Placement, node: NodeInfo, peaks: tuple[Peaks, ...],
        calibration: tuple[Calibration, ...] = (),
    ) -> Session:  # fmt: skip
        """Start the engine. Raises EngineError with the cause when it can't."""
        engine: Engine = resolve(ENGINES, "moecap.engines", system.engine)()
        facts = engine.start(model, system, placement)
        return cls(
            engine=engine, facts=facts, model=model, placement=placement, node=node, peaks=peaks,
            calibration=calibration,
        )  # fmt: skip

    def run(self, spec: RunSpec, *, study: str, telemetry: TelemetryHandle) -> RunData:
        """Measure. Telemetry runs from before the first request to after the last; warm-up comes before it.

        What was recorded without a steady window is handed over too: without windows, STEADY_WINDOW among its failed
        checks. What the engine raises is raised, whatever stopping the telemetry raises after it.
        """
        if spec.point.kind == "performance":
            self._warm_up(spec)
        while True:
            load, finder = self._load_of(spec)
            measured, sampled, others = self._watched(spec, load, telemetry)
            search = finder.settle(measured.serve.requests, *(measured.windows or (None,))) if finder else None
            if finder is None or search is not None:
                return self._hand_over(spec, study, replace(measured, search=search), sampled, others)

    def close(self) -> None:
        """Stop the engine."""
        self._engine.stop()

    # -- the load

    def _load_of(self, spec: RunSpec) -> tuple[LoadSpec | None, LoadFinder | None]:
        """What to measure under; found by trials, once for all repeats, where the study asks for that."""
        load = spec.point.load
        if load is None or load.search is None:
            return load, None
        finder = self._finders.setdefault(spec.point.point_id, self._finder(spec, load))
        return finder.find().load, finder

    def _finder(self, spec: RunSpec, load: LoadSpec) -> LoadFinder:
        assert spec.point.window is not None
        filling = spec.point.window.warmup_requests if load.is_open else 0

        def serve(tried: LoadSpec, count: int, number: int) -> Sequence[RequestRecord]:
            seed = spec.point.seed + 15_485_863 * (number + 1)
            requests = with_arrivals(self._requests(spec, count, seed, f"trial-{number}"), tried, seed)
            return self._engine.serve(requests, tried, spec.point.routing).requests

        return LoadFinder(load, filling=filling, most_at_once=self._facts.max_concurrency, serve=serve)

    # -- measuring

    def _watched(
        self, spec: RunSpec, load: LoadSpec | None, telemetry: TelemetryHandle
    ) -> tuple[_Measured, Telemetry, Seen]:
        """Measure while telemetry samples."""
        telemetry.start(os.getpid(), self._placement.device_uuids)
        others = OtherLoad()
        try:
            measured = self._accuracy(spec) if load is None else self._performance(spec, load)
        except BaseException as first:  # noqa: BLE001 - it is raised again
            try:
                telemetry.stop()
            finally:
                raise first  # a second error stays visible as its context
        seen = others.seen()
        return measured, telemetry.stop(), seen

    def _requests(self, spec: RunSpec, count: int, seed: int, prefix: str) -> list[Request]:
        assert spec.point.workload is not None
        kind = resolve(WORKLOADS, "moecap.workloads", spec.point.workload.type)
        try:
            workload: Workload = kind.model_validate(dict(spec.point.workload.options))
            return workload.requests(count, seed, self._engine.encode, self._facts.shape.vocab_size, prefix)
        except ValueError as error:  # a file that isn't the planned one, or isn't there
            label = spec.point.workload.label
            raise ConfigError(str(error), "workloads", label, "make it the same on every node") from error

    def _warm_up(self, spec: RunSpec) -> None:
        """In a closed loop, whatever the load: it wakes the engine and measures nothing."""
        point = spec.point
        assert point.window is not None and point.load is not None
        count = point.window.warmup_requests
        if count:
            requests = self._requests(spec, count, point.seed + 1_000_003, "warmup")
            load = point.load if point.load.concurrency else LoadSpec(concurrency=count)
            self._engine.serve(with_arrivals(requests, load, 0), load, point.routing)

    def _performance(self, spec: RunSpec, load: LoadSpec) -> _Measured:
        point = spec.point
        assert point.window is not None
        # Repeats draw other prompts: their spread then holds that of the workload too.
        seed = point.seed + 7919 * spec.repeat
        filling = point.window.warmup_requests if load.is_open else 0
        planned = max(point.window.requests, math.ceil((point.window.per_load or 0) * size_of(load)))
        requests = self._requests(spec, filling + planned, seed, "request")
        serve = self._engine.serve(with_arrivals(requests, load, seed), load, point.routing)
        window = steady_window(serve.requests, load, filling)
        if window is None:
            first = next((one.error for one in serve.requests if one.error), "too few produced a token in time")
            why = f"{len(serve.requests)} requests were served; {first}"
            return _Measured(serve=serve, windows=(), no_window=why)
        return _Measured(serve=serve, windows=(window,), load_held=load_check(serve.requests, window, load))

    def _accuracy(self, spec: RunSpec) -> _Measured:
        """Tasks one after the other, each in a window of its own, greedily decoded."""
        accuracy = spec.point.accuracy
        assert accuracy is not None
        serves, windows, samples = [], [], []
        for task in accuracy.tasks:
            items = load_task(task, accuracy.limit)
            requests = [
                Request(
                    request_id=f"{task}-{item.item_id}", item_index=index, ignore_eos=False,
                    prompt_token_ids=self._engine.encode(item.prompt), max_new_tokens=MAX_ANSWER_TOKENS,
                )
                for index, item in enumerate(items)
            ]  # fmt: skip
            start_ns = time.monotonic_ns()
            load = LoadSpec(arrival="closed", concurrency=accuracy.batch_size, staggered=False)
            serve = self._engine.serve(requests, load, spec.point.routing)
            windows.append(Window(start_ns=start_ns, end_ns=time.monotonic_ns(), phase=Phase.ACCURACY, label=task))
            serves.append(serve)
            for item, one in zip(items, serve.requests, strict=True):
                output = self._engine.decode(one.output_token_ids) if one.status == "ok" else None
                ended = one.output_tokens < MAX_ANSWER_TOKENS
                samples.append(grade(item, spec.repeat, output, ended=ended))
        return _Measured(serve=concatenate(serves), windows=tuple(windows), samples=tuple(samples))

    # -- handing over

    def _hand_over(self, spec: RunSpec, study: str, measured: _Measured, sampled: Telemetry, others: Seen) -> RunData:
        serve, facts = measured.serve, self._facts
        fingerprint = self._node.fingerprint
        passed, failed = run_checks(serve, measured.load_held)
        slow = slow_client(serve.client, serve.requests)
        if measured.no_window:
            failed[STEADY_WINDOW] = measured.no_window
        manifest = Manifest(
            schema_version=SCHEMA_VERSION, study=study, run_id=spec.run_id(fingerprint),
            point_id=spec.point.point_id, spec=spec, placement=self._placement, node=self._node,
            fingerprint=fingerprint, packages=package_versions(), git_commit=git_commit(), engine=facts.settings,
            shape=facts.shape, held=facts.held, peaks=self._peaks, windows=measured.windows, clock="monotonic",
            wall_offset_ns=time.time_ns() - time.monotonic_ns(), attempted=len(serve.requests),
            served=sum(one.first_token_ns is not None for one in serve.requests),
            completed=sum(one.status == "ok" for one in serve.requests), checks_passed=passed, checks_failed=failed,
            flags={
                **facts.flags,
                **({"dummy_weights": DUMMY_WEIGHTS} if facts.dummy_weights else {}),
                **({"slow_client": slow} if slow else {}),
                **search_flags(measured.search),
                **environment_flags(
                    self._peaks, others, num_cpus=self._node.num_cpus, niceness=os.getpriority(os.PRIO_PROCESS, 0)
                ),
            },
            unknown={
                **sampled.unknown, **({} if self._placement.device_uuids else UNREAD), **unknown_of(serve),
            },
            observer_ns=serve.observer_ns, sampler=sampled.stats, device_facts=sampled.device_facts,
            client=serve.client, search=measured.search, calibration=self._calibration,
        )  # fmt: skip
        return RunData(
            manifest=manifest,
            passes=table_of(PASSES, serve.passes),
            routing=table_of(ROUTING, serve.routing),
            tiers=table_of(TIERS, serve.tiers),
            requests=table_of(REQUESTS, serve.requests),
            hosts=table_of(HOSTS, sampled.samples),
            devices=table_of(DEVICES, sampled.device_samples),
            samples=table_of(SAMPLES, measured.samples),
        )


def size_of(load: LoadSpec) -> float:
    """Requests in flight, or per second; 0 for a replay."""
    return load.rate_per_s or load.concurrency or 0


def search_flags(search: SearchRecord | None) -> dict[str, str]:
    """What a reader must know of how the load was found -> why."""
    if search is None or search.found is not None:
        return {}
    why = next(one.reason for one in reversed(search.trials) if one.load == size_of(search.load))
    return {"no_load_meets_the_slo": f"{search.load.label} is the smallest that was tried: {why}"}


def environment_flags(peaks: Sequence[Peaks], others: Seen, *, num_cpus: int, niceness: int) -> dict[str, str]:
    """What a reader must know of the machine's state during a run -> why."""
    found = {}
    if others.disturbs(num_cpus):
        found["disturbed"] = f"{others.told}, of {num_cpus}: the machine was not this run's own"
    if niceness > 0:
        found["low_priority"] = f"the engine ran at niceness {niceness}: any other process went first"
    unsteady = {
        quantity: f"{quantity} {spread:.0%}"
        for one in peaks
        for quantity, spread in one.spread.items()
        if spread > UNSTEADY_SPREAD
    }
    if unsteady:
        found["unsteady_peaks"] = f"rounds of the calibration differ by {', '.join(unsteady.values())} of their median"
    return found


def unknown_of(serve: ServeRecord) -> dict[str, str]:
    """Quantity that was not recorded -> why."""
    if all(one.replica is not None for one in serve.requests):
        return {}
    return {"requests.replica": "a server doesn't say which of its data-parallel replicas served a request"}


def run_checks(serve: ServeRecord, load_held: str | None = None) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the checks that hold, and of those that don't with what was seen; `load_held` is of `load_check`."""
    invalid = [one for one in serve.passes if not one.valid]
    lost = [one for one in serve.requests if one.status != "ok"]
    seen = {
        "routing_conserves_tokens": f"{len(invalid)} of {len(serve.passes)} passes: {invalid[0].invalid_reason}"
        if invalid
        else "",
        "all_requests_completed": f"{len(lost)} of {len(serve.requests)} failed: {lost[0].error}" if lost else "",
        "passes_recorded": "" if serve.passes else "no pass was recorded",
    }
    if load_held is not None:
        seen["load_held"] = load_held
    return tuple(name for name, what in seen.items() if not what), {name: what for name, what in seen.items() if what}


def concatenate(serves: Sequence[ServeRecord]) -> ServeRecord:
    """Several recordings as one, pass and step ids renumbered so that they stay unique in the run; of clients the
    latest one."""
    passes, requests, observer_ns, next_step = list[PassRecord](), list[RequestRecord](), 0, 0
    routing, tiers = [ROUTING.empty_table()], list[TierRecord]()
    for serve in serves:
        base, first_step = len(passes), next_step
        passes += [replace(one, pass_id=base + one.pass_id, step_id=first_step + one.step_id) for one in serve.passes]
        next_step = 1 + max((one.step_id for one in passes), default=-1)
        table = table_of(ROUTING, serve.routing)
        routing.append(table.set_column(0, ROUTING.field("pass_id"), pc.add(table["pass_id"], base)))
        tiers += [replace(one, pass_id=base + one.pass_id) for one in serve.tiers]
        requests += serve.requests
        observer_ns += serve.observer_ns or 0
    return ServeRecord(
        passes=tuple(passes), routing=Rows(pa.concat_tables(routing), RoutingRecord), requests=tuple(requests),
        tiers=tuple(tiers), observer_ns=observer_ns, client=_slowest(serves),
    )  # fmt: skip


def _slowest(serves: Sequence[ServeRecord]) -> ClientRecord | None:
    """Of several clients, the one whose loop was latest."""
    clients = [serve.client for serve in serves if serve.client is not None]
    return max(clients, key=lambda client: client.loop_lag_p99_s or 0.0, default=None)


def package_versions() -> dict[str, str]:
    """Versions of what a result depends on; absent packages are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, `-dirty` when it was changed; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    git = ["git", "-C", str(here)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
