"""Look-ups that every page of the report needs: a metric of a point, and the points behind an entry of cap.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moecap.metrics.shown import Asked
from moecap.records import Metric, PointSpec, StudyPlan

Entry = Mapping[str, Any]
"""One entry of a compared set in cap.json."""


class MetricIndex:
    """Point-level rows by point, metric, statistic and phase."""

    def __init__(self, metrics: Iterable[Metric], asked: Asked) -> None:
        """Rows that are not `asked` for (against other peaks, charged in other ways) are not found."""
        self._rows: dict[tuple[str, str, str, str | None], Metric] = {}
        for row in metrics:
            if row.level == "point" and asked.holds(row):
                self._rows.setdefault((row.id, row.metric, row.stat, row.phase), row)

    def find(
        self, point: PointSpec | None, metric: str, stat: str = "value", phase: str | None = None
    ) -> Metric | None:
        """The row, or None when there is no such point or no such row."""
        return None if point is None else self._rows.get((point.point_id, metric, stat, phase))


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryPoints:
    """The points that one entry of a compared set rests on."""

    performance: PointSpec | None
    accuracy: PointSpec | None


def entry_points(plan: StudyPlan, workload: str, entry: Entry) -> EntryPoints:
    """Which points of the plan an entry shows; None where the plan has no such point."""
    mine = [one for one in plan.points if (one.model.name, one.system.name) == (entry["model"], entry["system"])]
    loaded = [
        one for one in mine
        if one.workload is not None and one.load is not None and one.workload.label == workload
        and one.load.label == entry["load"]
    ]  # fmt: skip
    return EntryPoints(
        performance=_on_device(loaded, entry["device"]),
        accuracy=_on_device([one for one in mine if one.kind == "accuracy"], entry["device"]),
    )


def entry_labels(entries: Sequence[Entry], slo: bool = False) -> list[str]:
    """A name for each entry of one set: the system, with the model, the device and the load where they differ."""
    shown = ["system"]
    for key in ("model", "device"):
        if len({entry[key] for entry in entries}) > 1:
            shown.append(key)
    if slo:
        shown.append("load")
    return [" ".join(", ".join(_shown(entry, key) for key in shown).split()) for entry in entries]


def _shown(entry: Entry, key: str) -> str:
    """A load that was searched for is shown as it was found."""
    return str((key == "load" and entry.get("found_load")) or entry[key])


def set_title(compared: Mapping[str, Any]) -> str:
    """What is compared: the workload and, without an SLO, the load."""
    return ", ".join(str(compared[key]) for key in ("workload", "load") if compared.get(key) is not None)


def set_names(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells the compared sets of a study apart: the load, with the workload where there are several."""
    several = len({one["workload"] for one in sets}) > 1
    return [set_title(one) if several or one.get("load") is None else str(one["load"]) for one in sets]


def point_labels(plan: StudyPlan) -> dict[str, str]:
    """point_id -> system and load, with the model and the workload where the study has several."""
    models = {one.model.name for one in plan.points}
    workloads = {one.workload.label for one in plan.points if one.workload is not None}
    labels = {}
    for one in plan.points:
        model = f"{one.model.name} " if len(models) > 1 else ""
        workload = f" {one.workload.label}" if one.workload is not None and len(workloads) > 1 else ""
        labels[one.point_id] = f"{model}{one.label}{workload}"
    return labels


def _on_device(points: Sequence[PointSpec], device: str) -> PointSpec | None:
    """The point asked for that device; one asked for any device otherwise."""
    exact = [one for one in points if one.system.device == device]
    return next(iter(exact or points), None)
