"""Two tables of what the devices' own counters say: bytes counted against DRAM traffic, and energy by either source
with the conditions around it. Both are left out of a study whose runs recorded no device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from moecap.records import Metric, StudyPlan
from moecap.report.format import UNKNOWN, markdown_cell, number
from moecap.report.index import point_labels
from moecap.report.tables import markdown_table

PHASES = ("decode", "prefill")
TRUTH = """\
S-MBU here is against the driver's peak, over the same window as the DRAM counter: the longest time of one phase. Errors
are counted / counter - 1: with the experts that fired, with every expert, and with min(tokens x top-k, experts)."""
ENERGY = """\
Joules of the devices by the driver's energy counter and by integrating its power, over the measurement window; idle
power is in both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A metric of a point."""

    title: str
    metric: str
    shown: Callable[[float], str] = number
    scale: float = 1.0
    stat: str = "value"
    source: str | None = None
    """Energy of the devices by this source; None: the metric itself."""


def _signed(value: float) -> str:
    return f"{value:+.2f}"


ACTIVITY = (
    Column(title="S-MBU physical %", metric="counted_dram_utilisation", scale=100),
    Column(title="DRAM counter %", metric="dram_utilisation", scale=100),
    Column(title="error %", metric="s_mbu_error", scale=100, shown=_signed),
    Column(title="every expert: error %", metric="mbu_error", scale=100, shown=_signed),
    Column(title="min(B k, E): error %", metric="mbu_min_bk_error", scale=100, shown=_signed),
    Column(title="tile efficiency %", metric="tile_efficiency", scale=100),
)
CONDITIONS = (
    Column(title="J/token by counter", metric="energy_j_per_output_token", source="nvml_counter"),
    Column(title="by power", metric="energy_j_per_output_token", source="nvml_power"),
    Column(title="power against counter %", metric="energy_disagreement", scale=100, shown=_signed),
    Column(title="J/request by counter", metric="energy_j_per_request", source="nvml_counter"),
    Column(title="W by counter", metric="power_w", source="nvml_counter"),
    Column(title="idle W", metric="idle_power_w"),
    Column(title="C p50", metric="temperature_c", stat="p50"),
    Column(title="C p99", metric="temperature_c", stat="p99"),
    Column(title="SM clock p50 GHz", metric="sm_clock_hz", stat="p50", scale=1e-9),
    Column(title="throttled %", metric="throttled_share", scale=100),
)

Key = tuple[str, str, str | None, str, str | None]
"""Point, metric, phase, statistic, and of devices' energy its source."""


def silicon(metrics: Iterable[Metric], plan: StudyPlan) -> list[str]:
    """The tables' sections, as Markdown blocks."""
    rows = dict(_keyed(metrics, plan))
    labels = {
        one.point_id: point_labels(plan)[one.point_id]
        for one in plan.points
        if one.kind == "performance" and one.point_id not in plan.dropped_points
    }
    traffic = [
        (point_id, phase)
        for point_id in labels
        for phase in PHASES
        if (point_id, "s_mbu_error", phase, "value", None) in rows
    ]
    drawn: list[tuple[str, str | None]] = [
        (point_id, None)
        for point_id in labels
        if (point_id, "energy_j_per_output_token", None, "value", "nvml_counter") in rows
    ]
    found = []
    if traffic:
        found += ["## Counted against the silicon", TRUTH, *_table(traffic, ACTIVITY, rows, labels, _window)]
    if drawn:
        found += ["## Energy of the devices", ENERGY, *_table(drawn, CONDITIONS, rows, labels, None)]
    return found


def _keyed(metrics: Iterable[Metric], plan: StudyPlan) -> Iterator[tuple[Key, Metric]]:
    """Rows of points against the peaks that the study shows; of energy those of the devices, of the rest no parts."""
    for row in metrics:
        stated = json.loads(row.qualifiers or "{}")
        component = stated.get("component")
        if row.level != "point" or row.peak_source not in (None, plan.peaks) or "reason" in stated:
            continue
        if component is None:
            yield (row.id, row.metric, row.phase, row.stat, None), row
        elif component == "device" and "energy_source" in stated:
            yield (row.id, row.metric, row.phase, row.stat, stated["energy_source"]), row


def _table(
    places: Sequence[tuple[str, str | None]],
    columns: Sequence[Column],
    rows: dict[Key, Metric],
    labels: dict[str, str],
    before: Callable[[str, str | None, dict[Key, Metric]], tuple[str, ...]] | None,
) -> list[str]:
    """The table, and why its values that are unknown are, each reason once."""
    lines, missing = [], dict[str, dict[str, None]]()
    for point_id, phase in places:
        cells = list(before(point_id, phase, rows)) if before else []
        for column in columns:
            row = rows.get((point_id, column.metric, phase, column.stat, column.source))
            if row is None or row.value is None:
                why = "it was not measured" if row is None else row.missing_reason
                missing.setdefault(f"{UNKNOWN}: {why}", {})[" ".join(filter(None, (labels[point_id], phase)))] = None
            cells.append(UNKNOWN if row is None or row.value is None else column.shown(column.scale * row.value))
        lines.append((labels[point_id], *cells))
    heads = ("phase", "window") if before else ()
    table = markdown_table(("point", *heads, *(column.title for column in columns)), lines)
    reasons = ["- " + markdown_cell(f"{why} ({', '.join(where)})") for why, where in missing.items()]
    return [table, "\n".join(reasons)] if reasons else [table]


def _window(point_id: str, phase: str | None, rows: dict[Key, Metric]) -> tuple[str, ...]:
    """The phase, and how long it was compared over."""
    row = rows[point_id, "s_mbu_error", phase, "value", None]
    return phase or "", json.loads(row.qualifiers or "{}").get("window", UNKNOWN)
