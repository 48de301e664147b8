"""The comparison that console and summary show: compared sets as rows of cells, and the notes below them.

It decides what is shown; how it looks is up to console.py and summary.py. It computes no metric.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moecap.metrics.shown import asked_by
from moecap.records import Metric, StudyPlan
from moecap.report.format import UNKNOWN, byte_count, half_width, number, with_half_width
from moecap.report.index import Entry, EntryPoints, MetricIndex, entry_labels, entry_points, set_names, set_title


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A metric of a point as a column."""

    title: str
    unit: str
    metric: str
    stat: str = "value"
    scale: float = 1.0
    """From the metric's unit to the column's."""
    of: Literal["performance", "accuracy"] = "performance"
    """Which of a system's points measures it."""
    interval: bool = False


COST = "usd_per_million_output_tokens"
COLUMNS = (
    Column(title="output", unit="tok/s", metric="output_tokens_per_s", interval=True),
    Column(title="TTFT", unit="p50 ms", metric="ttft_s", stat="p50", scale=1e3),
    Column(title="TPOT", unit="p50 ms", metric="tpot_s", stat="p50", scale=1e3),
    Column(title="accuracy", unit="%", metric="accuracy", scale=100, of="accuracy", interval=True),
    Column(title="memory", unit="", metric="memory_bytes"),
    Column(title="S-MBU", unit="%", metric="s_mbu", scale=100),
    Column(title="S-MFU", unit="%", metric="s_mfu", scale=100),
    Column(title="cost", unit="$/1M out", metric=COST),
    Column(title="energy", unit="J/token", metric="energy_j_per_output_token"),
)
HEADERS = (("system", ""), *((one.title, one.unit) for one in COLUMNS), ("CAP", "area"), ("class", ""), ("Pareto", ""))
"""Title and unit of every column; the first holds the name of the system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One compared set."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    """Cells in the order of HEADERS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All compared sets of a study."""

    sections: tuple[Section, ...]
    notes: tuple[str, ...]


def compare(metrics: Sequence[Metric], cap: Mapping[str, Any], plan: StudyPlan) -> Comparison:
    """What the study found, ready to be laid out."""
    index, notes = MetricIndex(metrics, asked_by(plan)), _Notes()
    names = set_names(cap["sets"])
    sections = tuple(_section(one, name, index, plan, notes) for one, name in zip(cap["sets"], names, strict=True))
    notes.left_out = _left_out(cap, plan)
    notes.outside = {
        one["reason"]: {
            other["system"]: None for other in compared.get("outside", ()) if other["reason"] == one["reason"]
        }
        for compared in cap["sets"]
        for one in compared.get("outside", ())
    }
    notes.is_relative = plan.cap.reference is None and any(len(one["entries"]) > 1 for one in cap["sets"])
    return Comparison(sections=sections, notes=tuple(notes.lines(plan)))


def _section(compared: Mapping[str, Any], name: str, index: MetricIndex, plan: StudyPlan, notes: _Notes) -> Section:
    entries, rows = compared["entries"], []
    for label, entry in zip(entry_labels(entries, plan.slo is not None), entries, strict=True):
        points = entry_points(plan, compared["workload"], entry)
        told = notes.of(label, name)
        cells = [_cell(column, _row_of(column, points, index), told) for column in COLUMNS]
        rows.append((label, *cells, *_verdict(entry, told)))
        told.marks(entry["marks"])
    return Section(title=set_title(compared), rows=tuple(rows))


def _row_of(column: Column, points: EntryPoints, index: MetricIndex) -> Metric | None:
    point = points.performance if column.of == "performance" else points.accuracy
    return index.find(point, column.metric, column.stat)


def _cell(column: Column, row: Metric | None, told: _Told) -> str:
    if row is None or row.value is None:
        reason = row.missing_reason if row is not None else None
        told.missing(column.title, reason or "it was not measured")
        return UNKNOWN
    told.basis(row)
    if row.metric == "memory_bytes":
        return byte_count(row.value)
    half = half_width(row) if column.interval else None
    value = row.value * column.scale
    return number(value) if half is None else with_half_width(value, half * column.scale)


def _verdict(entry: Entry, told: _Told) -> tuple[str, str, str]:
    """CAP area, class and Pareto membership, all unknown while an axis is."""
    if entry["cap_area"] is None:
        axes = [axis for axis, value in entry["normalised"].items() if value is None]
        told.missing("CAP", f"no {' and no '.join(axes)} axis" if axes else "it could not be computed")
        return UNKNOWN, UNKNOWN, UNKNOWN
    return number(entry["cap_area"]), str(entry["class"] or UNKNOWN), "yes" if entry["pareto"] else "no"


def _left_out(cap: Mapping[str, Any], plan: StudyPlan) -> list[str]:
    """Points of the plan that no entry shows; with an SLO, systems without any entry that weren't measured."""
    keys = ("model", "system") if plan.slo else ("model", "system", "load")
    shown = {
        (compared["workload"], *(entry[key] for key in keys))
        for compared in cap["sets"]
        for entry in [*compared["entries"], *compared.get("outside", ())]
    }
    absent = []
    for one in plan.points:
        if one.workload is not None and one.load is not None:
            key = (one.workload.label, one.model.name, one.system.name, one.load.label)[: len(keys) + 1]
            if key not in shown:
                absent.append(one.system.name if plan.slo else one.label)
    return list(dict.fromkeys(absent))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Told:
    """What is noted about one system in one compared set."""

    notes: _Notes
    system: str
    compared: str

    def missing(self, title: str, reason: str) -> None:
        """A cell without a value."""
        self.notes.missing.setdefault((reason, self.system, self.compared), {})[title] = None

    def marks(self, marks: Iterable[str]) -> None:
        """What the reducer marked the entry with."""
        for mark in marks:
            self.notes.marks.setdefault(mark, {})[self.system, self.compared] = None

    def basis(self, row: Metric) -> None:
        """What a shown value rests on."""
        self.notes.interval |= half_width(row) is not None
        self.notes.peaks |= row.peak_source is not None
        if row.metric == COST and row.value and row.price_low is not None and row.price_high is not None:
            span = f"{row.price_low / row.value:.2g} to {row.price_high / row.value:.2g}"
            self.notes.spans.setdefault(span, {})[self.system, self.compared] = None
        axis = {COST: "cost", "energy_j_per_output_token": "energy"}.get(row.metric)
        stated = json.loads(row.qualifiers or "{}")
        if axis is not None and stated:
            words = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in sorted(stated.items()))
            self.notes.bases[f"{axis} - {words}"] = None


class _Notes:
    """What must be said below the tables, each thing once, with where it holds. Dicts serve as ordered sets."""

    def __init__(self) -> None:
        self.missing: dict[tuple[str, str, str], dict[str, None]] = {}
        """(reason, system, compared set) -> columns."""
        self.marks: dict[str, dict[tuple[str, str], None]] = {}
        """Mark -> (system, compared set)."""
        self.bases: dict[str, None] = {}
        self.left_out: list[str] = []
        self.outside: dict[str, dict[str, None]] = {}
        """Why systems that were measured aren't compared -> systems."""
        self.is_relative = False
        self.spans: dict[str, dict[tuple[str, str], None]] = {}
        """Cost at the ends of its prices, as shares of what is shown -> (system, compared set)."""
        self.interval = self.peaks = False
        self._entries: dict[tuple[str, str], None] = {}

    def of(self, system: str, compared: str) -> _Told:
        """Where notes about one entry go."""
        self._entries[system, compared] = None
        return _Told(notes=self, system=system, compared=compared)

    def lines(self, plan: StudyPlan) -> Iterable[str]:
        """The notes, most general first."""
        if self.interval:
            yield "± is half of the 95 % interval"
        if self.peaks:
            yield f"S-MBU and S-MFU are shares of {plan.peaks} peaks"
        yield from self.bases
        for span, holders in self.spans.items():
            yield f"cost at the low and high ends of its prices: {span} times what is shown ({self._where(holders)})"
        for mark, holders in self.marks.items():
            yield f"{mark} ({self._where(holders)})"
        for (reason, titles), holders in self._grouped().items():
            yield f"{UNKNOWN} {titles}: {reason} ({self._where(holders)})"
        for reason, systems in self.outside.items():
            yield f"measured and not compared: {', '.join(systems)}: {reason}; metrics.csv has their numbers"
        if self.left_out:
            yield f"not shown, without a whole run: {', '.join(self.left_out)}"
        if self.is_relative:
            yield "CAP axes run from the worst (0) to the best (1) of what is compared, however near they are"

    def _grouped(self) -> dict[tuple[str, str], dict[tuple[str, str], None]]:
        """(reason, columns) -> entries: one line where several cells lack values for the same reason."""
        grouped: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
        for (reason, system, compared), titles in self.missing.items():
            grouped.setdefault((reason, ", ".join(titles)), {})[system, compared] = None
        return grouped

    def _where(self, holders: Mapping[tuple[str, str], None]) -> str:
        """`all systems`, `int8` (wherever it is shown), or `int8, resident at <compared set>`."""
        if holders.keys() == self._entries.keys() and len(holders) > 1:
            return "all systems"
        places: dict[str, list[str]] = {}
        for system in dict.fromkeys(system for system, _ in holders):
            mine = [compared for name, compared in holders if name == system]
            everywhere = len(mine) == sum(name == system for name, _ in self._entries)
            places.setdefault("" if everywhere else f" at {' and '.join(mine)}", []).append(system)
        return "; ".join(f"{', '.join(systems)}{place}" for place, systems in places.items())
