"""Stretches of a run in which every pass is of one phase, how much of each pass lies in one, and the window of a phase
in which hardware counters are held against what was counted. Pure; it knows no joules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import groupby

import numpy as np
import pyarrow as pa

from moecap.metrics.columns import NS, Floats, Ints, Passes, passes_of, routing_of
from moecap.metrics.devices import SLICED, PlacedDevices
from moecap.metrics.series import Stretch
from moecap.metrics.work import PassWork, pass_work
from moecap.store import RunData

PHASES = ("prefill", "decode")
MIN_WINDOW_S = 5.0
"""Of a window that hardware counters are compared over: over 1 s they were 5 % off once, over 2 s and more 1.2 %."""
STALE_NS = 100_000_000
"""So old may be what a reading holds (GPM's refresh): a window begins no sooner after the phase did."""
ROUNDING_NS = 1000
"""Passes that lie no further apart follow each other: clocks that are converted round."""
OVERLAP = "passes of several replicas overlap: no stretch is of one phase"


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
    numbered, end_ns, gaps = [], rows[0][0] if rows else 0, 0
    for started_ns, duration_ns, phase, valid in rows:
        gaps += abs(started_ns - end_ns) > ROUNDING_NS
        end_ns = started_ns + duration_ns
        numbered.append(((phase, valid, gaps), started_ns, end_ns))
    found = []
    for (phase, valid, _), group in groupby(numbered, key=lambda row: row[0]):
        members = list(group)
        if valid and phase in PHASES:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class OnePhaseWindow:
    """From one reading of the devices' hardware counters to another, with passes of one phase all the way between."""

    stretch: Stretch
    passes: Passes
    shares: Floats
    """Of each pass's time, what lies in the window: 1 but at the edges."""
    work: PassWork

    @property
    def seconds(self) -> float:
        """Length of it."""
        return (self.stretch[1] - self.stretch[0]) * NS

    def counted(self, per_pass: Floats) -> float:
        """Sum of a quantity of passes, those at the edges pro rata."""
        return float(per_pass @ self.shares)


def one_phase_windows(run: RunData, devices: PlacedDevices) -> dict[str, OnePhaseWindow | str]:
    """Phase -> the longest such window of the whole recording, or why there is none."""
    found = _stretches_or_why(run, devices)
    if isinstance(found, str):
        return dict.fromkeys(PHASES, found)
    times_ns = _read_by_all(devices)
    windows: dict[str, OnePhaseWindow | str] = {}
    for phase in PHASES:
        aligned = [_aligned(one.stretch, times_ns) for one in found if one.phase == phase]
        start_ns, end_ns = max(aligned, key=lambda one: one[1] - one[0], default=(0, 0))
        if (seconds := (end_ns - start_ns) * NS) < MIN_WINDOW_S:
            told = f"{seconds:.1f} s are the longest time of {phase} passes alone between two readings of the counters"
            windows[phase] = f"{told}, less than {MIN_WINDOW_S:g} s"
            continue
        passes, shares = passes_in(run.passes, (start_ns, end_ns))
        work = pass_work(run.manifest.shape, run.manifest.held, passes, routing_of(run.routing, passes))
        windows[phase] = OnePhaseWindow(stretch=(start_ns, end_ns), passes=passes, shares=shares, work=work)
    return windows


def _stretches_or_why(run: RunData, devices: PlacedDevices) -> list[OnePhase] | str:
    if devices.is_sliced:
        return SLICED
    if all(not len(one.times_ns) for one in devices.series("dram_active_s").values()):
        return f"no hardware counter of DRAM traffic was read: {devices.why_unread('dram_active_s')}"
    if len(run.passes["replica"].unique()) > 1:
        return OVERLAP
    return one_phase_stretches(run.passes)


def _read_by_all(devices: PlacedDevices) -> Ints:
    """Times at which the hardware counters of all placed devices were read."""
    times = [one.times_ns for one in devices.series("dram_active_s").values()]
    common: Ints = reduce(np.intersect1d, times)
    return common


def _aligned(stretch: Stretch, times_ns: Ints) -> Stretch:
    """From the first to the last of the times at which counters hold nothing but it: no interpolation is needed."""
    inside = times_ns[(times_ns >= stretch[0] + STALE_NS) & (times_ns <= stretch[1])]
    return (int(inside[0]), int(inside[-1])) if len(inside) else (0, 0)
