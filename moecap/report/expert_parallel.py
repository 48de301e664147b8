"""Figures of replayed expert-parallel layouts: loads of experts and ranks, imbalance over time, the EP-degree curve.

Importing this loads no matplotlib; drawing does. It computes nothing but means.
"""

# ruff: noqa: PLC0415  (figures are imported when drawn)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moecap.errors import StoreError
from moecap.predict.document import knee
from moecap.predict.expert_parallel import Replay
from moecap.predict.routing import Floats, Routing
from moecap.report.format import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILES = ("ep_load.png", "ep_imbalance.png", "ep_degree.png")


def write_figures(found: Sequence[Replay], routing: Routing, out: Path) -> list[Path]:
    """All figures of one sweep over degrees; loads and imbalance are of the largest. StoreError: can't be written."""
    from moecap.report.canvas import save

    largest = max(found, key=lambda one: one.layout.where.num_ranks)
    name = f"{largest.layout.kind}, EP {largest.layout.where.num_ranks}"
    figures = (
        load_figure(routing, largest),
        imbalance_figure({name: largest}),
        degree_figure({largest.layout.kind: found}),
    )
    paths = [out / name for name in FILES]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for figure, path in zip(figures, paths, strict=True):
            save(figure, path)
    except OSError as error:
        raise StoreError(f"can't write figures into {out}: {error}; choose a folder that can be written") from error
    return paths


def load_figure(routing: Routing, found: Replay) -> Figure:
    """Expert by layer and rank by layer: assignments over the layer's mean, one colour scale."""
    from moecap.report.canvas import INK, TITLE_SIZE, new_figure

    by_expert, by_rank = _relative(routing.load()), _relative(found.rank_assignments)
    layers = len(routing.layers)
    height = min(4.6, max(1.8, 0.14 * layers + 1.0))
    figure = new_figure(11, height + 0.7)
    where = found.layout.where
    title = f"Load over the mean of the layer; {found.layout.kind} placement on {where.num_ranks} ranks"
    figure.text(0.5, 0.99, title, ha="center", va="top", fontsize=TITLE_SIZE, color=INK)
    top = max(float(by_expert.max()), float(by_rank.max()), 2.0)
    tall = height + 0.7
    grid = figure.add_gridspec(1, 3, width_ratios=(5, 5, 0.18), top=1 - 0.45 / tall, bottom=0.5 / tall)
    for column, (values, what) in enumerate(((by_expert, "expert"), (by_rank, "rank"))):
        axes = figure.add_subplot(grid[0, column])
        image = _heat_map(axes, values, routing.layers, what, top)
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[0, 2]))
    bar.ax.axhline(1.0, color="white", linewidth=1.5)
    bar.set_ticks([0.0, 1.0, top], labels=["0", "1 = even", number(top)])
    return figure


def imbalance_figure(found: Mapping[str, Replay]) -> Figure:
    """Over the passes in order: max/mean of assignments over ranks, mean of the layers, and where 80 % of them lie."""
    from moecap.report.canvas import COLOURS, INK, TEXT_SIZE, TITLE_SIZE, new_figure

    figure = new_figure(10, 3.6)
    axes = figure.add_axes((0.08, 0.16, 0.89, 0.7))
    for (name, one), colour in zip(found.items(), COLOURS, strict=False):
        values = one.imbalance
        low, high = np.percentile(values, (10, 90), axis=1)
        at = np.arange(len(values))
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(at, values.mean(axis=1), color=colour, linewidth=1.2, label=name)
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_ylim(0.9, 1.12 * axes.get_ylim()[1])
    axes.set_xlim(0, max(1, len(at) - 1))
    axes.set_xlabel("pass", fontsize=TEXT_SIZE, color=INK)
    axes.set_ylabel("max / mean over ranks", fontsize=TEXT_SIZE, color=INK)
    axes.set_title("Imbalance over time; bands: 80 % of the layers", fontsize=TITLE_SIZE, color=INK)
    axes.legend(fontsize=TEXT_SIZE, frameon=False, loc="upper right", ncols=len(found))
    _plain(axes)
    return figure


def degree_figure(found: Mapping[str, Sequence[Replay]]) -> Figure:
    """Over the degree, of the busiest rank: weights read, rows moved (bounds shaded), and the share that waiting for it
    costs, of assignments and of compute time; for every named sweep. A ring marks the knee of each curve."""
    from moecap.report.canvas import COLOURS, INK, SMALL_SIZE, new_figure

    figure = new_figure(14.5, 4.5)
    panels = [figure.add_axes((left, 0.13, 0.265, 0.68)) for left in (0.05, 0.385, 0.72)]
    weights, rows, shares = panels
    for (name, sweep), colour in zip(found.items(), COLOURS, strict=False):
        degrees = [one.layout.where.num_ranks for one in sweep]
        _curve(
            weights, degrees, [float(one.most_expert_bytes.mean()) / 1e6 for one in sweep], colour=colour, label=name
        )
        moved = np.array([[part.mean() / 1e6 for part in one.busiest_bytes] for one in sweep])
        _curve(rows, degrees, moved[:, 1].tolist(), colour=colour, label=name)
        rows.fill_between(degrees, moved[:, 0], moved[:, 2], color=colour, alpha=0.15, linewidth=0)
        waited = [100 * (1 - one.mean_assignments.sum() / one.most_assignments.sum()) for one in sweep]
        _curve(shares, degrees, waited, colour=colour, label=f"{name}: assignments")
        lost = [100 * one.straggler_share for one in sweep]
        _curve(shares, degrees, lost, colour=colour, label=f"{name}: time", style="--")
    titles = ("weights read, MB", "rows moved, MB", "share lost to waiting for it, %")
    for axes, title in zip(panels, titles, strict=True):
        _degree_axes(axes, degrees, title)
    shares.set_ylim(top=1.35 * shares.get_ylim()[1])  # room for the legend
    head = "The busiest rank, per layer and pass, over the expert-parallel degree. Ring: knee, farthest from the chord"
    figure.text(0.5, 0.99, head, ha="center", va="top", fontsize=SMALL_SIZE + 2.5, color=INK)
    return figure


def _degree_axes(axes: Axes, degrees: list[int], title: str) -> None:
    from moecap.report.canvas import INK, SMALL_SIZE, TEXT_SIZE

    axes.set_xscale("log", base=2)
    axes.set_xticks(degrees, [str(degree) for degree in degrees])
    axes.minorticks_off()
    axes.set_title(title, fontsize=TEXT_SIZE + 1, color=INK)
    axes.set_xlabel("expert-parallel degree", fontsize=TEXT_SIZE, color=INK)
    axes.legend(fontsize=SMALL_SIZE, frameon=False)
    axes.set_ylim(bottom=0)
    _plain(axes)


def _curve(
    axes: Axes, degrees: list[int], values: list[float], *, colour: str, label: str, style: str = "-"
) -> None:  # fmt: skip
    axes.plot(degrees, values, style, color=colour, marker=".", linewidth=1.5, label=label)
    at = knee(np.log2(degrees).tolist(), values)
    if at is not None:
        axes.plot(degrees[at], values[at], "o", markersize=11, markerfacecolor="none", markeredgecolor=colour)


def _heat_map(axes: Axes, values: Floats, layers: Sequence[int], what: str, top: float) -> Any:
    from matplotlib.colors import PowerNorm

    from moecap.report.canvas import INK, SMALL_SIZE, TEXT_SIZE
    from moecap.report.heatmap import GAMMA

    image = axes.imshow(
        values, aspect="auto", interpolation="nearest", cmap="viridis", norm=PowerNorm(GAMMA, vmin=0, vmax=top)
    )
    rows, across = values.shape
    step = max(1, -(-rows // 8))
    axes.set_yticks(list(range(0, rows, step)), [str(layers[row]) for row in range(0, rows, step)])
    axes.set_xticks(list(range(0, across, max(1, across // 8))))
    axes.tick_params(labelsize=SMALL_SIZE, colors=INK)
    axes.set_xlabel(what, fontsize=TEXT_SIZE, color=INK)
    axes.set_ylabel("layer", fontsize=TEXT_SIZE, color=INK)
    return image


def _plain(axes: Axes) -> None:
    from moecap.report.canvas import GRID, INK, SMALL_SIZE

    axes.grid(color=GRID, linewidth=0.5, alpha=0.6)
    axes.tick_params(labelsize=SMALL_SIZE, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _relative(values: Any) -> Floats:
    mean = values.mean(axis=1, keepdims=True)
    found: Floats = np.divide(values, mean, out=np.zeros(values.shape), where=mean > 0)
    return found
