"""The CAP diagram: one triangle per compared set, one polygon per system, 1 (best) at the corners.

0 is drawn on an inner ring, not in the centre, so that a system that is worst on two axes still has a shape. A system
that lacks an axis is drawn open, between the axes that it has.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moecap.records import StudyPlan
from moecap.report.canvas import COLOURS, GRID, INK, SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, new_figure, plain
from moecap.report.format import number, quantity
from moecap.report.index import Entry, entry_labels, set_names

AXES = ("cost", "accuracy", "performance")
ANGLES = (math.radians(90), math.radians(210), math.radians(330))
INNER = 0.2
"""Distance from the centre at which 0 lies; 1 lies at distance 1."""
RINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PER_ROW = 3
PANEL_IN, TRIANGLE_IN = 4.4, 3.5
TITLE_LINE_IN, LEGEND_LINE_IN, LINE_CHARACTERS = 0.19, 0.155, 44
CHARACTERS_PER_IN = 12
"""Of a line below the title, about."""


def radar_figure(cap: Mapping[str, Any], plan: StudyPlan, units: Mapping[str, str]) -> Figure:
    """All compared sets side by side. `units`: metric name -> unit, for the raw values in the legends."""
    sets = cap["sets"]
    across, down = min(PER_ROW, max(1, len(sets))), max(1, math.ceil(len(sets) / PER_ROW))
    systems = list({_identity(entry): None for compared in sets for entry in compared["entries"]})
    legends = [_legend_texts(compared, plan, units) for compared in sets]
    legend_in = max((sum(LEGEND_LINE_IN * (text.count("\n") + 1.6) for text in texts) for texts in legends), default=0)
    names = [textwrap.fill(name, LINE_CHARACTERS) for name in set_names(sets)]
    name_in = 0.3 + TITLE_LINE_IN * max((name.count("\n") + 1 for name in names), default=0)
    row_in = name_in + TRIANGLE_IN + legend_in + 0.2
    width_in = PANEL_IN * across
    below = _title_lines(sets, plan, width_in)
    title_in = 0.5 + TITLE_LINE_IN * len(below)
    height_in = title_in + row_in * down
    figure = new_figure(width_in, height_in)
    for at, (compared, texts) in enumerate(zip(sets, legends, strict=True)):
        row, column = divmod(at, PER_ROW)
        bottom_in = height_in - title_in - row * row_in - name_in - TRIANGLE_IN
        place = (column / across, bottom_in / height_in, 1 / across, TRIANGLE_IN / height_in)
        panel = figure.add_axes(place)
        panel.set_title(plain(names[at]), fontsize=TEXT_SIZE, color=INK, pad=8)
        _panel(panel, compared, texts, systems)
    _titles(figure, plan, below, height_in)
    return figure


def _title_lines(sets: Sequence[Mapping[str, Any]], plan: StudyPlan, width_in: float) -> list[str]:
    """What 1 and the star mean, and the workload where all sets share it."""
    if not sets:
        return ["nothing to compare: no performance run is whole"]
    reference = "the best of each set, 0 = the worst" if plan.cap.reference is None else f"system {plan.cap.reference}"
    workloads = {compared["workload"] for compared in sets}
    shared = textwrap.wrap(f"workload: {sets[0]['workload']}", int(width_in * CHARACTERS_PER_IN))
    return [f"1 = {reference}; ★ = on the Pareto front", *(shared if len(workloads) == 1 else ())]


def _titles(figure: Figure, plan: StudyPlan, lines: Sequence[str], height_in: float) -> None:
    title, below = f"Cost, accuracy and performance: {plan.name}", "\n".join(lines)
    figure.text(0.5, 1 - 0.08 / height_in, plain(title), ha="center", va="top", fontsize=TITLE_SIZE, color=INK)
    figure.text(0.5, 1 - 0.40 / height_in, plain(below), ha="center", va="top", fontsize=TEXT_SIZE, color=INK)


def vertices(normalised: Mapping[str, float | None]) -> list[tuple[float, float] | None]:
    """Where an entry lies on each axis, in the plane; None on an axis that it lacks."""
    return [
        None if (value := normalised[axis]) is None else _point(value, angle)
        for axis, angle in zip(AXES, ANGLES, strict=True)
    ]


def _point(value: float, angle: float) -> tuple[float, float]:
    radius = INNER + (1 - INNER) * value
    return radius * math.cos(angle), radius * math.sin(angle)


def _identity(entry: Entry) -> tuple[str, str, str]:
    return entry["model"], entry["system"], entry["device"]


def _panel(
    axes: Axes, compared: Mapping[str, Any], texts: Sequence[str], systems: Sequence[tuple[str, str, str]]
) -> None:
    _grid(axes)
    for entry, text in zip(compared["entries"], texts, strict=True):
        _draw(axes, entry, systems.index(_identity(entry)), text)
    if not texts:
        axes.text(0, 0, "no system meets the SLO", ha="center", fontsize=TEXT_SIZE, color=INK)
        return
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0.02), fontsize=SMALL_SIZE, frameon=False, handlelength=2.2,
        labelspacing=0.7,
    )  # fmt: skip


def _grid(axes: Axes) -> None:
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-0.72, 1.2)
    for ring in RINGS:
        corners = [_point(ring, angle) for angle in (*ANGLES, ANGLES[0])]
        axes.plot(*zip(*corners, strict=True), color=GRID, linewidth=1.0 if ring == 1 else 0.6, zorder=1)
    for angle in ANGLES:
        axes.plot(*zip(_point(0, angle), _point(1, angle), strict=True), color=GRID, linewidth=0.8, zorder=1)
    for ring in (0.0, 0.5, 1.0):
        x, y = _point(ring, ANGLES[0])
        axes.text(x + 0.07, y, f"{ring:g}", fontsize=SMALL_SIZE - 1, color="#777777", va="center", zorder=4)
    for axis, (x, y), va in zip(AXES, [(0, 1.1), (-0.87, -0.56), (0.87, -0.56)], ("bottom", "top", "top"), strict=True):
        axes.text(x, y, axis.capitalize(), ha="center", va=va, fontsize=TEXT_SIZE, color=INK, weight="bold")


def _draw(axes: Axes, entry: Entry, place: int, text: str) -> None:
    """A filled polygon; with an axis missing, the line between those that are known."""
    colour = COLOURS[place % len(COLOURS)]
    marker = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]  # the eighth colour has another marker
    known = [corner for corner in vertices(entry["normalised"]) if corner is not None]
    whole = len(known) == len(AXES)
    outline = [*known, known[0]] if whole else known
    xs, ys = zip(*outline, strict=True) if outline else ((), ())
    if whole:
        axes.fill(xs, ys, color=colour, alpha=0.13, zorder=2)
    # What coincides stays visible: markers and lines shrink from one system to the next.
    size, width = max(4.0, 10.0 - 2.0 * place), max(1.4, 4.0 - 0.9 * place)
    axes.plot(
        xs, ys, color=colour, marker=marker, markersize=size, linewidth=width, linestyle="-" if whole else "--",
        label=plain(text), zorder=3 + 0.01 * place,
    )  # fmt: skip


def _legend_texts(compared: Mapping[str, Any], plan: StudyPlan, units: Mapping[str, str]) -> list[str]:
    """One text per system: its name with the Pareto star, the raw value of every axis, CAP area and class."""
    labels = entry_labels(compared["entries"], plan.slo is not None)
    return [_legend_text(label, entry, plan, units) for label, entry in zip(labels, compared["entries"], strict=True)]


def _legend_text(label: str, entry: Entry, plan: StudyPlan, units: Mapping[str, str]) -> str:
    name = textwrap.fill(f"{label} ★" if entry["pareto"] else label, LINE_CHARACTERS)
    raw = []
    for axis in AXES:
        metric, value = getattr(plan.cap, axis), entry["raw"][axis]
        raw.append(f"no {axis}" if value is None else quantity(metric, value, units.get(metric, "")))
    verdict = "no area" if entry["cap_area"] is None else f"area {number(entry['cap_area'])}, {entry['class']}"
    return f"{name}\n{' · '.join(raw)}\n{verdict}"
