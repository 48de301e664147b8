"""A latency + size/bandwidth model of a collective's time, in pieces where the measured sizes demand it. Pure.

Libraries change protocol and algorithm with the size, so one line through all sizes fits none. Every second measured
size is used; the others, between them, tell the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

MOST_PIECES = 4
LEAST_SIZES = 2
"""Of a piece."""
GOOD_ENOUGH = 0.03
"""Root mean square of the relative errors at the used sizes; below it, no further piece is added."""
CLASSES = ((64 * 1024, "up to 64 KiB"), (4 * 2**20, "to 4 MiB"), (float("inf"), "above 4 MiB"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One measured time."""

    size_bytes: int
    """As nccl-tests count: the whole buffer of a rank, its own part included."""
    time_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Time = latency + size x s_per_byte, from a size on."""

    from_bytes: int
    latency_s: float
    s_per_byte: float


def used(points: Sequence[Measured]) -> list[Measured]:
    """Points of every second size: the 1st, the 3rd ..."""
    chosen = sorted({point.size_bytes for point in points})[::2]
    return [point for point in points if point.size_bytes in chosen]


def held_out(points: Sequence[Measured]) -> list[Measured]:
    """Points of the other sizes."""
    chosen = sorted({point.size_bytes for point in points})[1::2]
    return [point for point in points if point.size_bytes in chosen]


def size_class(size_bytes: int) -> str:
    """Under which sizes its error is told."""
    return next(name for most, name in CLASSES if size_bytes <= most)


def fit(points: Sequence[Measured]) -> list[Piece]:
    """The fewest pieces that are good enough, at most `MOST_PIECES`; each cut where the squared relative errors are
    least. A piece begins midway, in logarithms, between the last size before it and its own first."""
    sizes = sorted({point.size_bytes for point in points})
    groups = [[point for point in points if point.size_bytes == size] for size in sizes]
    for count in range(1, MOST_PIECES + 1):
        cuts, squares = _best_cuts(groups, count)
        if (squares / len(points)) ** 0.5 <= GOOD_ENOUGH:
            break
    edges = [0, *cuts, len(groups)]
    pieces = []
    for start, end in pairwise(edges):
        latency, slope, _ = _line([point for group in groups[start:end] for point in group])
        begins = 0 if start == 0 else round((sizes[start - 1] * sizes[start]) ** 0.5)
        pieces.append(Piece(from_bytes=begins, latency_s=latency, s_per_byte=slope))
    return pieces


def time_of(pieces: Sequence[Piece], size_bytes: float) -> float:
    """Seconds; sizes beyond the largest measured one follow the last piece."""
    piece = next(one for one in reversed(pieces) if size_bytes >= one.from_bytes)
    return piece.latency_s + size_bytes * piece.s_per_byte


def error_of(pieces: Sequence[Piece], point: Measured) -> float:
    """Relative: above 0, the fit takes too long."""
    return time_of(pieces, point.size_bytes) / point.time_s - 1


def _best_cuts(groups: Sequence[Sequence[Measured]], count: int, start: int = 0) -> tuple[list[int], float]:
    """Where to cut groups[start:] into `count` pieces, and what squared relative errors are left."""
    if count == 1:
        return [], _line([point for group in groups[start:] for point in group])[2]
    best: tuple[list[int], float] = ([], float("inf"))
    for cut in range(start + LEAST_SIZES, len(groups) - LEAST_SIZES * (count - 1) + 1):
        head = _line([point for group in groups[start:cut] for point in group])[2]
        rest, squares = _best_cuts(groups, count - 1, cut)
        if head + squares < best[1]:
            best = ([cut, *rest], head + squares)
    return best


def _line(points: Sequence[Measured]) -> tuple[float, float, float]:
    """Latency, seconds per byte, neither below 0, and the squared relative errors that they leave."""
    size = np.array([point.size_bytes for point in points], dtype=np.float64)
    time = np.array([point.time_s for point in points])
    columns = np.stack([1 / time, size / time], axis=1)
    scale = np.abs(columns).max(axis=0)
    (latency, slope), *_ = np.linalg.lstsq(columns / scale, np.ones(len(points)), rcond=None)
    if latency < 0 or slope < 0:
        alone = [float(column.sum() / (column @ column)) for column in (columns / scale).T]
        left = [float(np.square((columns / scale)[:, at] * alone[at] - 1).sum()) for at in (0, 1)]
        latency, slope = (alone[0], 0.0) if left[0] <= left[1] else (0.0, alone[1])
    latency_s, s_per_byte = float(latency / scale[0]), float(slope / scale[1])
    squares = np.square((latency_s + size * s_per_byte) / time - 1).sum()
    return latency_s, s_per_byte, float(squares)
