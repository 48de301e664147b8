"""The reducer: every run of a study -> rows of metrics.parquet and cap.json. It holds one run's tables at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from moecap.metrics import accuracy, conditions, cost, energy, footprint, performance, truth, utilisation
from moecap.metrics.cap import MeasuredPoint, cap_of, check_axes
from moecap.metrics.combine import Measured, observe_run, point_rows, run_rows
from moecap.metrics.declare import METRICS
from moecap.metrics.marks import marks_of
from moecap.metrics.shown import asked_by
from moecap.metrics.view import RunView
from moecap.prices import load_prices
from moecap.records import CostSpec, Metric, StudyPlan
from moecap.store import RunData

AXES = (performance, utilisation, truth, footprint, energy, conditions, cost, accuracy)
"""Modules whose import declares the metrics."""
HEADLINE = {"output_tokens_per_s": "value", "ttft_s": "p50", "tpot_s": "p50", "accuracy": "value"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reduction:
    """What a study amounts to."""

    metrics: tuple[Metric, ...]
    cap: dict[str, Any]


@dataclass(slots=True)
class _Point:
    device: str
    runs: list[list[Measured]] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)
    checks_failed: dict[str, str] = field(default_factory=dict)
    found_loads: list[str] = field(default_factory=list)


def reduce_runs(runs: Iterable[RunData], plan: StudyPlan) -> Reduction:
    """Rows of every run and point, and CAP of the points that the plan still holds.

    Raises ConfigError for prices or axes that can't be.
    """
    prices = load_prices(plan.prices)
    gathered: dict[str, _Point] = {}
    rows: list[Metric] = []
    for run in runs:
        manifest = run.manifest
        measured = observe_run(RunView(run, slo=plan.slo, cost=plan.cost, prices=prices, peak_source=plan.peaks))
        rows += run_rows(manifest.run_id, measured)
        point = gathered.setdefault(manifest.point_id, _Point(device=_device(run)))
        point.runs.append(measured)
        point.flags |= manifest.flags
        point.checks_failed |= manifest.checks_failed
        point.found_loads += [manifest.search.load.label] if manifest.search is not None else []
    of_points = {point_id: tuple(point_rows(point_id, point.runs)) for point_id, point in gathered.items()}
    measured_points = [
        MeasuredPoint(
            point=spec, device=(point := gathered[point_id]).device, rows=of_points[point_id],
            found_load=", ".join(dict.fromkeys(point.found_loads)) or None,
            marks=marks_of(of_points[point_id], plan.peaks, point.flags, point.checks_failed),
        )
        for spec in plan.points
        if (point_id := spec.point_id) in gathered and point_id not in plan.dropped_points
    ]  # fmt: skip
    every_row = (*rows, *(row for point in of_points.values() for row in point))
    return Reduction(metrics=every_row, cap=cap_of(measured_points, plan.cap, plan.slo, asked_by(plan)))


def metric_names() -> tuple[str, ...]:
    """Every declared metric."""
    return tuple(METRICS)


def check_reducible(plan: StudyPlan) -> None:
    """ConfigError for what would stop the reducer after everything was measured."""
    load_prices(plan.prices)
    check_axes(plan.cap)


def headline(run: RunData) -> dict[str, float]:
    """The few values of a run that a line of progress shows; those that are unknown are left out."""
    view = RunView(run, slo=None, cost=CostSpec(), prices=load_prices({}), peak_source="calibrated")
    found = {}
    for row in run_rows(run.manifest.run_id, observe_run(view)):
        if HEADLINE.get(row.metric) == row.stat and row.value is not None and '"task"' not in row.qualifiers:
            found[row.metric] = row.value
    return found


def _device(run: RunData) -> str:
    """What the run computed on."""
    return run.manifest.node.device_key if run.manifest.placement.device_uuids else "cpu"
