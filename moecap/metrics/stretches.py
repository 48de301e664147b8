"""Stretches of a run in which every pass is of one phase, and how much of each pass lies in a stretch. Pure; it knows
no bytes and no joules."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa

from moecap.metrics.columns import Floats, Passes, passes_of
from moecap.metrics.series import Stretch


@dataclass(frozen=True, kw_only=True, slots=True)
class OnePhase:
    """Passes that follow each other without a gap, all valid and of one phase."""

    phase: str
    stretch: Stretch
    """From the start of the first to the end of the last."""


def one_phase_stretches(passes: pa.Table) -> list[OnePhase]:
    """Every such stretch of the recording, as long as it can be, mixed passes left out. The passes must be of one
    replica: those of several overlap."""
    rows = sorted(
        zip(*(passes[name].to_pylist() for name in ("started_ns", "duration_ns", "phase", "valid")), strict=True)
    )
    numbered, end_ns, gaps = [], None, 0
    for started_ns, duration_ns, phase, valid in rows:
        gaps += started_ns != end_ns
        end_ns = started_ns + duration_ns
        numbered.append(((phase, valid, gaps), started_ns, end_ns))
    found = []
    for (phase, valid, _), group in groupby(numbered, key=lambda row: row[0]):
        members = list(group)
        if valid and phase in ("prefill", "decode"):
            found.append(OnePhase(phase=phase, stretch=(members[0][1], members[-1][2])))
    return found


def within(stretch: Stretch, bounds: Stretch) -> Stretch | None:
    """What of a stretch lies within bounds."""
    start_ns, end_ns = max(stretch[0], bounds[0]), min(stretch[1], bounds[1])
    return (start_ns, end_ns) if start_ns < end_ns else None


def passes_in(passes: pa.Table, stretch: Stretch) -> tuple[Passes, Floats]:
    """Valid passes of which some lies in the stretch, and the share of each one's time that does."""
    started, duration = (passes[name].to_numpy() for name in ("started_ns", "duration_ns"))
    inside_ns = np.minimum(started + duration, stretch[1]) - np.maximum(started, stretch[0])
    chosen = (inside_ns > 0) & passes["valid"].to_numpy()
    shares: Floats = inside_ns[chosen] / duration[chosen]
    return passes_of(passes.filter(pa.array(chosen))), shares
