"""What both figures share: palette, fonts, and a figure that can be saved without a display or global state."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart by colour-blind people; yellow left out: too pale."""
INK, GRID = "#222222", "#BBBBBB"
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 13, 10, 8.5


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty white figure of that size."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """As PNG, without the margins that nothing was drawn in."""
    figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=0.15)


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: `$` would start a formula."""
    return text.replace("$", r"\$")
