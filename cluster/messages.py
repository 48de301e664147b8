"""What the lifecycle is told (events) and what it answers (commands). Data only.

An engine is one start of one system on one node; its id is never used again, so a late word of a dead engine
can't be taken for one of its successor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from moecap.records import ModelSpec, Placement, SystemSpec


class RunState(StrEnum):
    """Where a planned run stands."""

    PLANNED = "planned"
    STARTING = "starting"
    """Its engine is being started for it."""
    RUNNING = "running"
    STORED = "stored"
    FAILED = "failed"
    REFUSED = "refused"
    """No node can host its point."""
    UNPLACEABLE = "unplaceable"
    """The nodes that could host it, or that its stored repeats ran on, are gone."""
    CANCELLED = "cancelled"
    NOT_NEEDED = "not_needed"
    """The repeats before it agree well enough."""


class RunKey(NamedTuple):
    """One repeat of one point."""

    point_id: str
    repeat: int

    def __str__(self) -> str:
        return f"{self.point_id}-{self.repeat}"


FailureKind = Literal["own", "system"]
"""`own`: the engine or the configuration is at fault, so that trying again is blind. `system`: a worker, a node or
the store went away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What a node says of a run that it stored."""

    run_id: str
    headline: Mapping[str, float | None]
    """A few values of the run under their metric names, for progress and for stopping repeats early."""
    flags: Mapping[str, str]
    checks_failed: Mapping[str, str]


# ------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, kw_only=True, slots=True)
class Begin:
    """Everything is connected: go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStarted:
    """The engine serves."""

    engine_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFailed:
    """The engine can't be started as configured."""

    engine_id: int
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStored:
    """The run is whole in the store."""

    engine_id: int
    run: RunKey
    summary: RunSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFailed:
    """The run ended without a result; its worker still answers."""

    engine_id: int
    run: RunKey
    error: str
    kind: FailureKind


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLost:
    """The process that held the engine is gone, its node isn't."""

    engine_id: int
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Hung:
    """The engine's start, or its run, passed its deadline."""

    engine_id: int
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStopped:
    """Nothing of the engine is left: its node is free."""

    engine_id: int
    log: str | None = None
    """The end of what it printed, where that could be read."""
    stored: RunSummary | None = None
    """Of the run that it was killed in by a cancellation, if that had become whole by then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeLost:
    """The node left the cluster."""

    node_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancelled:
    """The user wants it to end."""


EngineEvent = EngineStarted | EngineFailed | RunStored | RunFailed | WorkerLost | Hung
Event = Begin | EngineEvent | EngineStopped | NodeLost | Cancelled


# ----------------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True, kw_only=True, slots=True)
class StartEngine:
    """Start the system there. Answered by EngineStarted, EngineFailed, WorkerLost or Hung."""

    engine_id: int
    model: ModelSpec
    system: SystemSpec
    placement: Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class StartRun:
    """Measure on a started engine, after `cooldown_s` of rest. Answered by RunStored, RunFailed, WorkerLost or Hung."""

    engine_id: int
    run: RunKey
    cooldown_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StopEngine:
    """End the engine, by force if `kill`. Always answered by EngineStopped."""

    engine_id: int
    kill: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A run's state changed: who, where and why."""

    run: RunKey
    state: RunState
    why: str = ""
    placement: Placement | None = None
    failure: FailureKind | None = None
    """Set when an attempt at the run failed, whether or not it is tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """Nothing is left to do and no engine is up."""


Command = StartEngine | StartRun | StopEngine | Record | Finish
