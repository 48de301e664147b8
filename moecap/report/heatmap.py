"""The expert-activation figure: share of each layer's assignments that every expert got, one panel per task.

Routing belongs to the model, so one system per model is enough for the tasks; a model without accuracy runs shows the
traffic of its performance runs, summed over the systems. One band of panels per model.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from moecap.records import StudyPlan
from moecap.report.canvas import INK, SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, new_figure, plain
from moecap.report.evidence import Evidence, RoutingSums, Traffic
from moecap.report.format import number

GAMMA = 0.5
"""Colours follow the square root of the share: rarely used experts stay distinguishable from unused ones."""
WIDE_EXPERTS = 96
"""From here on, two panels a row instead of four."""
TITLE_LINE_IN, PANEL_TITLE_IN = 0.24, 0.9
CHARACTERS_PER_IN = 9
"""Of a title, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One heat map."""

    title: str
    layers: tuple[int, ...]
    shares: npt.NDArray[np.float64]
    """layers x experts; every row sums to 1, or is 0 where nothing was routed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """All panels of one model."""

    title: str
    panels: tuple[Panel, ...]


def bands(evidence: Evidence, plan: StudyPlan) -> list[Band]:
    """What the figure shows, models in the order of the plan."""
    models = dict.fromkeys(point.model.name for point in plan.points)
    return [band for model in models if (band := _band(model, evidence, plan)) is not None]


def activation_figure(evidence: Evidence, plan: StudyPlan) -> Figure:
    """Every model's band below the other; a figure that says so when no routing was recorded."""
    shown = bands(evidence, plan)
    if not shown:
        figure = new_figure(7, 1.5)
        figure.text(0.5, 0.5, "no routing was recorded inside a window", ha="center", va="center", fontsize=TEXT_SIZE)
        return figure
    grids = [_grid(band) for band in shown]
    figure = new_figure(max(grid.width_in for grid in grids), sum(grid.height_in for grid in grids))
    parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=[grid.height_in for grid in grids]).ravel()
    for part, band, grid in zip(parts, shown, grids, strict=True):
        _draw_band(part, band, grid)
    return figure


# -- what is shown


def _band(model: str, evidence: Evidence, plan: StudyPlan) -> Band | None:
    mine = {traffic: sums for traffic, sums in evidence.routing.items() if traffic.model == model}
    if not mine:
        return None
    system = _accuracy_system(model, mine, plan)
    if system is None:
        systems = list(dict.fromkeys(traffic.system for traffic in mine))
        panels, whose = [_panel("performance runs", _summed(list(mine.values())))], ", ".join(systems)
    else:
        tasks = _tasks(model, system, plan)
        panels = [
            _panel(task, sums)
            for task in tasks
            if (sums := mine.get(Traffic(model=model, system=system, task=task))) is not None
        ]
        whose = system
    dummy = "RANDOM WEIGHTS, this routing says nothing about the model. " if model in evidence.dummy_models else ""
    title = f"{dummy}Expert activation of {model}: share of each layer's assignments (measured on {whose})"
    return Band(title=title, panels=tuple(panels))


def _accuracy_system(model: str, routing: Mapping[Traffic, RoutingSums], plan: StudyPlan) -> str | None:
    """The plan's first system with accuracy routing of this model."""
    having = {traffic.system for traffic in routing if traffic.task is not None}
    listed = [point.system.name for point in plan.points if point.model.name == model]
    return next((name for name in listed if name in having), None)


def _tasks(model: str, system: str, plan: StudyPlan) -> list[str]:
    asked = [
        task
        for point in plan.points
        if point.accuracy is not None and (point.model.name, point.system.name) == (model, system)
        for task in point.accuracy.tasks
    ]
    return list(dict.fromkeys(asked))


def _summed(parts: Sequence[RoutingSums]) -> RoutingSums:
    total = RoutingSums()
    for part in parts:
        for layer, counts in part.counts.items():
            total.add(layer, counts, 0, 0)
        total.distinct += part.distinct
        total.pass_layers += part.pass_layers
    return total


def _panel(name: str, sums: RoutingSums) -> Panel:
    layers = tuple(sorted(sums.counts))
    experts = max(len(counts) for counts in sums.counts.values())
    shares = np.zeros((len(layers), experts))
    for row, layer in enumerate(layers):
        counts = sums.counts[layer]
        shares[row, : len(counts)] = counts / max(1, counts.sum())
    distinct = sums.distinct / sums.pass_layers
    return Panel(title=f"{name}\n{distinct:.1f} of {experts} experts a pass", layers=layers, shares=shares)


# -- how it is drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grid:
    """Where a band's panels go, in inches."""

    across: int
    down: int
    panel_width_in: float
    panel_height_in: float
    title: str
    bar_in: float = 1.1

    @property
    def width_in(self) -> float:
        return self.across * (self.panel_width_in + 0.45) + self.bar_in + 0.8

    @property
    def title_lines(self) -> list[str]:
        return textwrap.wrap(self.title, int(self.width_in * CHARACTERS_PER_IN))

    @property
    def title_in(self) -> float:
        return 0.2 + TITLE_LINE_IN * len(self.title_lines)

    @property
    def height_in(self) -> float:
        return self.title_in + self.down * (self.panel_height_in + PANEL_TITLE_IN) + 0.2


def _grid(band: Band) -> _Grid:
    layers, experts = band.panels[0].shares.shape
    most = 2 if experts >= WIDE_EXPERTS else 4
    across = min(most, len(band.panels))
    width = 4.6 if experts >= WIDE_EXPERTS else 2.5
    if len(band.panels) == 1:
        width = max(width, 4.6)
    height = min(3.4, max(1.3, 0.22 * layers))
    return _Grid(
        across=across,
        down=math.ceil(len(band.panels) / across),
        panel_width_in=width,
        panel_height_in=height,
        title=band.title,
    )


def _draw_band(part: SubFigure, band: Band, grid: _Grid) -> None:
    part.text(
        0.5, 1 - 0.1 / grid.height_in, plain("\n".join(grid.title_lines)), ha="center", va="top", fontsize=TITLE_SIZE,
        color=INK,
    )  # fmt: skip
    image = None
    brightest = max(float(panel.shares.max()) for panel in band.panels)
    uniform = 1 / band.panels[0].shares.shape[1]
    top = max(brightest, uniform)
    norm = PowerNorm(GAMMA, vmin=0, vmax=top)
    for at, panel in enumerate(band.panels):
        row, column = divmod(at, grid.across)
        axes = part.add_axes(_place(grid, row, column))
        image = _draw_panel(axes, panel, norm, left=column == 0, bottom=at + grid.across >= len(band.panels))
    if image is not None:
        _colour_bar(part, image, uniform, top, grid)


def _place(grid: _Grid, row: int, column: int) -> tuple[float, float, float, float]:
    """Left, bottom, width and height of a panel, as shares of the band."""
    left = 0.6 + column * (grid.panel_width_in + 0.45)
    top = grid.title_in + PANEL_TITLE_IN - 0.35 + row * (grid.panel_height_in + PANEL_TITLE_IN)
    return (
        left / grid.width_in, 1 - (top + grid.panel_height_in) / grid.height_in,
        grid.panel_width_in / grid.width_in, grid.panel_height_in / grid.height_in,
    )  # fmt: skip


def _draw_panel(axes: Axes, panel: Panel, norm: PowerNorm, *, left: bool, bottom: bool) -> AxesImage:
    image = axes.imshow(panel.shares, aspect="auto", interpolation="nearest", cmap="viridis", norm=norm)
    layers, experts = panel.shares.shape
    axes.set_title(plain(panel.title), fontsize=TEXT_SIZE - 0.5, color=INK)
    rows = list(range(0, layers, max(1, math.ceil(layers / 8))))
    axes.set_yticks(rows, [str(panel.layers[row]) for row in rows])
    axes.set_xticks(list(range(0, experts, max(1, experts // 8))))
    axes.tick_params(labelsize=SMALL_SIZE, colors=INK)
    if left:
        axes.set_ylabel("layer", fontsize=TEXT_SIZE, color=INK)
    if bottom:
        axes.set_xlabel("expert", fontsize=TEXT_SIZE, color=INK)
    return image


def _colour_bar(part: SubFigure, image: AxesImage, uniform: float, top: float, grid: _Grid) -> None:
    """The scale in percent, with the share that uniform routing would give."""
    _, bottom, _, height = _place(grid, 0, 0)
    left = (0.6 + grid.across * (grid.panel_width_in + 0.45) - 0.2) / grid.width_in
    bar_axes = part.add_axes((left, bottom, 0.14 / grid.width_in, height))
    bar = part.colorbar(image, cax=bar_axes)
    ticks = sorted({0.0, uniform, top})
    names = {0.0: "0 %", uniform: f"{number(100 * uniform)} % = uniform", top: f"{number(100 * top)} %"}
    bar.set_ticks(ticks, labels=[names[tick] for tick in ticks])
    bar.ax.axhline(uniform, color="white", linewidth=2)
    bar.ax.tick_params(labelsize=SMALL_SIZE, colors=INK)
