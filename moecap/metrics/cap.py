"""The CAP diagram: compared sets, normalised axes, area, class, Pareto front and marks. Pure; it reads no run.

An entry is a (model, system, device, workload, load). Without an SLO every load of a workload is a set of its own; with
one, each system enters a workload's only set at its feasible load with the most output tokens per second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moecap.errors import ConfigError
from moecap.metrics.declare import METRICS, Direction
from moecap.metrics.shown import Asked
from moecap.records import CapSpec, Metric, PointSpec, SloSpec

AXES = ("cost", "accuracy", "performance")
CLASS_WITHOUT = {"cost": "PA", "accuracy": "PC", "performance": "CA"}
"""Weakest axis -> the two that are kept."""
THROUGHPUT, SLO_SHARE = "output_tokens_per_s", "slo_share"

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredPoint:
    """A point of the plan with its rows."""

    point: PointSpec
    device: str
    """Catalogue key, name, or `cpu`: what it ran on."""
    rows: Sequence[Metric]
    """Of the point's level."""
    marks: tuple[str, ...] = ()
    found_load: str | None = None
    """What a load that was searched for was in the runs; None: the study said it."""


@dataclass(slots=True)
class _Entry:
    measured: MeasuredPoint
    raw: dict[str, float | None]
    ci95: dict[str, Interval | None]
    normalised: dict[str, float | None] = field(default_factory=dict)
    spread: dict[str, Interval | None] = field(default_factory=dict)
    """Intervals on the normalised axes."""
    marks: list[str] = field(default_factory=list)


def cap_of(points: Iterable[MeasuredPoint], spec: CapSpec, slo: SloSpec | None, asked: Asked) -> dict[str, Any]:
    """cap.json. ConfigError when an axis names no metric."""
    check_axes(spec)
    listed = list(points)
    accuracies = {_system_of(one): one for one in listed if one.point.kind == "accuracy"}
    performances = [one for one in listed if one.point.kind == "performance"]
    by_workload: dict[str, list[MeasuredPoint]] = {}
    for one in performances:
        assert one.point.workload is not None
        by_workload.setdefault(one.point.workload.label, []).append(one)
    sets = []
    for workload, measured in by_workload.items():
        for load, chosen, outside in _compared(measured, slo, asked):
            entries = [_entry(one, accuracies.get(_system_of(one)), spec, asked) for one in chosen]
            _normalise(entries, spec)
            documents = [_document(one, entries, spec) for one in entries]
            sets.append({"workload": workload, "load": load, "entries": documents, "outside": outside})
    return {"axes": {axis: getattr(spec, axis) for axis in AXES}, "reference": spec.reference, "sets": sets}


def check_axes(spec: CapSpec) -> None:
    """ConfigError for the first axis that names no metric."""
    for axis in AXES:
        if getattr(spec, axis) not in METRICS:
            known = ", ".join(sorted(METRICS))
            raise ConfigError("is no metric", f"cap.axes.{axis}", getattr(spec, axis), f"use one of {known}")


def find(rows: Iterable[Metric], name: str, asked: Asked) -> Metric | None:
    """The overall row of a metric: all phases, no task or tier; the mean where there are samples."""
    for row in rows:
        if row.metric == name and row.phase is None and row.stat in ("value", "mean") and asked.holds(row):
            return row
    return None


def _system_of(one: MeasuredPoint) -> tuple[str, str, str]:
    return one.point.model.name, one.point.system.name, one.device


def _compared(
    measured: Sequence[MeasuredPoint], slo: SloSpec | None, asked: Asked
) -> list[tuple[str | None, list[MeasuredPoint], list[dict[str, str]]]]:
    """Load, points and what is left out with its reason, per compared set."""
    if slo is None:
        by_load: dict[str, list[MeasuredPoint]] = {}
        for one in measured:
            by_load.setdefault(_load(one), []).append(one)
        return [(load, members, []) for load, members in by_load.items()]
    chosen, outside = [], []
    systems: dict[tuple[str, str, str], list[MeasuredPoint]] = {}
    for one in measured:
        systems.setdefault(_system_of(one), []).append(one)
    for (model, system, device), loads in systems.items():
        feasible = [one for one in loads if (_value(one, SLO_SHARE, asked) or 0.0) >= slo.share]
        if feasible:
            chosen.append(max(feasible, key=lambda one: _value(one, THROUGHPUT, asked) or 0.0))
        else:
            reason = f"no measured load meets the SLO for {slo.share:.0%} of its requests"
            outside.append({"model": model, "system": system, "device": device, "reason": reason})
    return [(None, chosen, outside)]


def _value(one: MeasuredPoint, name: str, asked: Asked) -> float | None:
    row = find(one.rows, name, asked)
    return None if row is None else row.value


def _load(one: MeasuredPoint) -> str:
    assert one.point.load is not None, "performance points have a load"
    return one.point.load.label


def _entry(one: MeasuredPoint, accuracy: MeasuredPoint | None, spec: CapSpec, asked: Asked) -> _Entry:
    """Raw values and intervals: an axis whose metric is of accuracy points is read there."""
    entry = _Entry(measured=one, raw={}, ci95={}, marks=list(one.marks))
    for axis in AXES:
        name = getattr(spec, axis)
        holder = accuracy if METRICS[name].kind == "accuracy" else one
        row = None if holder is None else find(holder.rows, name, asked)
        entry.raw[axis] = None if row is None else row.value
        known = row is not None and row.ci95_low is not None and row.ci95_high is not None
        entry.ci95[axis] = (row.ci95_low, row.ci95_high) if row is not None and known else None  # type: ignore[assignment]
        if entry.raw[axis] is None:
            reason = row.missing_reason if row is not None else f"no whole {METRICS[name].kind} run"
            entry.marks.append(f"no {axis}: {reason}")
    if accuracy is not None:
        entry.marks += [mark for mark in accuracy.marks if mark not in entry.marks]
    return entry


def _normalise(entries: Sequence[_Entry], spec: CapSpec) -> None:
    """Fill `normalised` and `spread`, 1 best; equal or single values are 1, and marked."""
    for axis in AXES:
        direction = METRICS[getattr(spec, axis)].direction
        known = [one.raw[axis] for one in entries if one.raw[axis] is not None]
        for one in entries:
            reference = _reference(one, entries, axis, spec.reference)
            value, interval = one.raw[axis], one.ci95[axis]
            one.normalised[axis] = one.spread[axis] = None
            if value is None:
                continue
            if spec.reference is not None and reference is None:
                one.marks.append(f"{axis} of the reference {spec.reference} is unknown")
                continue
            scale = _Scale(values=known, reference=reference, direction=direction)  # type: ignore[arg-type]
            one.normalised[axis] = scale(value)
            if interval is not None:
                one.spread[axis] = tuple(sorted(map(scale, interval)))  # type: ignore[assignment]
            if scale.is_flat:
                one.marks.append(f"{axis}: {'one value only' if len(known) == 1 else 'equal values'}")


def _reference(one: _Entry, entries: Sequence[_Entry], axis: str, name: str | None) -> float | None:
    """The axis of the named system with the entry's own model; on its own device where it ran there, else on the only
    other one."""
    model, _, device = _system_of(one.measured)
    named = [each for each in entries if _system_of(each.measured)[:2] == (model, name)]
    same_device = [each for each in named if each.measured.device == device]
    chosen = same_device or named
    return chosen[0].raw[axis] if len(chosen) == 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """Raw value -> [0, 1], 1 best."""

    values: Sequence[float]
    reference: float | None
    direction: Direction

    @property
    def is_flat(self) -> bool:
        return self.reference is None and min(self.values) == max(self.values)

    def __call__(self, value: float) -> float:
        lower_is_better = self.direction == "lower"
        if self.reference is not None:
            over, under = (self.reference, value) if lower_is_better else (value, self.reference)
            return 1.0 if under <= 0 else max(0.0, min(1.0, over / under))
        if self.is_flat:
            return 1.0
        low, high = min(self.values), max(self.values)
        share = (value - low) / (high - low)
        return 1.0 - share if lower_is_better else share


def _document(one: _Entry, entries: Sequence[_Entry], spec: CapSpec) -> dict[str, Any]:
    point = one.measured.point
    complete = [one for one in entries if None not in one.raw.values()]
    return {
        "model": point.model.name, "system": point.system.name, "device": one.measured.device,
        "load": _load(one.measured), "found_load": one.measured.found_load,
        "raw": one.raw, "normalised": one.normalised,
        "ci95": {axis: None if interval is None else list(interval) for axis, interval in one.ci95.items()},
        "cap_area": cap_area(one.normalised), "class": _class_of(one),
        "pareto": one in complete and not any(_dominates(other, one, spec) for other in complete),
        "marks": one.marks,
    }  # fmt: skip


def cap_area(normalised: Mapping[str, float | None]) -> float | None:
    """(ab + bc + ca) / 3: the triangle's area relative to the largest; None without all axes."""
    a, b, c = (normalised[axis] for axis in AXES)
    return None if a is None or b is None or c is None else (a * b + b * c + c * a) / 3


def _class_of(one: _Entry) -> str | None:
    """PA, PC or CA when the weakest axis lies wholly under the others, intervals and all; else balanced.

    An axis without an interval, as of one run, is its value: then fewer runs don't hold a class back.
    """
    intervals: dict[str, Interval] = {}
    for axis, value in one.normalised.items():
        if value is None:
            return None
        spread = one.spread[axis]
        intervals[axis] = (value, value) if spread is None else (min(value, spread[0]), max(value, spread[1]))
    weakest = min(AXES, key=lambda axis: one.normalised[axis] or 0.0)
    others = [intervals[axis][0] for axis in AXES if axis != weakest]
    return CLASS_WITHOUT[weakest] if intervals[weakest][1] < min(others) else "balanced"


def _dominates(one: _Entry, other: _Entry, spec: CapSpec) -> bool:
    """At least as good on every axis and better on one."""
    better = equal = 0
    for axis in AXES:
        mine, theirs = one.raw[axis], other.raw[axis]
        assert mine is not None and theirs is not None, "only complete entries are compared"
        sign = -1.0 if METRICS[getattr(spec, axis)].direction == "lower" else 1.0
        better += sign * mine > sign * theirs
        equal += mine == theirs
    return better > 0 and better + equal == len(AXES)
