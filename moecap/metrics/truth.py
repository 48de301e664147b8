"""Metrics that hold what was counted against what the silicon counted: DRAM traffic, and tensor activity.

Both sides are of the same wall-clock window, in which every pass is of one phase (`one_phase`). Definitions:
docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from moecap.metrics.columns import NS, Floats
from moecap.metrics.declare import Observed, metric, ratio
from moecap.metrics.devices import SLICED, Reading
from moecap.metrics.one_phase import PHASES, OnePhaseWindow, passes_in
from moecap.metrics.series import Stretch
from moecap.metrics.view import RunView
from moecap.metrics.work import PassWork, pass_flops

NEEDS = ("passes", "routing", "devices")
OFFLOADED = "weights are streamed into the memory that computes, and what that writes there is not counted"
SHARED = "{} devices: which of them hold, and read, copies of what is not recorded"
NOTHING_MOVED = "the hardware counter of DRAM traffic did not rise"
NO_ACTIVITY = "the tensor cores were never active"


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Of the placed devices' DRAM, by their hardware counters."""

    bytes: Reading
    possible: float = 0.0
    """Bytes at the drivers' peak rates all the time."""


def dram_traffic(run: RunView, stretch: Stretch) -> Traffic:
    """Share of the peak that was active x seconds x the driver's peak rate, summed over the devices."""
    peaks = run.devices.facts("dram_bytes_per_s")
    if run.devices.is_sliced or isinstance(peaks, str):
        return Traffic(bytes=Reading(missing=SLICED if run.devices.is_sliced else str(peaks)))
    possible = sum(peaks.values()) * (stretch[1] - stretch[0]) * NS
    return Traffic(bytes=run.devices.increase("dram_active_s", stretch, peaks), possible=possible)


def _by_counter(over: Callable[[Traffic], float]) -> Callable[[RunView], Iterator[Observed]]:
    """Bytes over something: of the measurement window first, then of each phase's."""

    def observe(run: RunView) -> Iterator[Observed]:
        yield _of_traffic(dram_traffic(run, run.window_ns), over, None)
        for phase in PHASES:
            window = run.one_phase[phase]
            if isinstance(window, str):
                yield Observed(missing=window, phase=phase)
            else:
                yield _of_traffic(dram_traffic(run, window.stretch), over, phase)

    return observe


def _of_traffic(found: Traffic, over: Callable[[Traffic], float], phase: str | None) -> Observed:
    if found.bytes.value is None:
        return Observed(missing=found.bytes.missing, phase=phase)
    return ratio(found.bytes.value, over(found), n=found.bytes.n, why_zero=NOTHING_MOVED, phase=phase)


metric("dram_bytes", unit="bytes", direction="neither", needs=("devices",))(_by_counter(lambda found: 1.0))
metric("dram_utilisation", unit="share", direction="higher", needs=("devices",))(
    _by_counter(lambda found: found.possible)
)


# ------------------------------------------------------------------------------------- counted against the counter


def _comparable(run: RunView, phase: str) -> OnePhaseWindow | str:
    """The window in which both sides are known, or why there is none."""
    held, count = run.held, len(run.manifest.placement.device_uuids)
    if run.tier_names or held.resident_weight_bytes < sum(held.weight_bytes.values()):
        return OFFLOADED
    return SHARED.format(count) if count > 1 else run.one_phase[phase]


def _against_counter(
    bytes_of: Callable[[PassWork], Floats], value: Callable[[float, float, float], tuple[float, float]]
) -> Callable[[RunView], Iterator[Observed]]:
    """`value` of (counted bytes, the counter's, possible bytes) -> numerator and denominator; by phase."""

    def observe(run: RunView) -> Iterator[Observed]:
        for phase in PHASES:
            window = _comparable(run, phase)
            if isinstance(window, str):
                yield Observed(missing=window, phase=phase, scope="physical")
                continue
            found = dram_traffic(run, window.stretch)
            if found.bytes.value is None:
                yield Observed(missing=found.bytes.missing, phase=phase, scope="physical")
                continue
            numerator, denominator = value(window.counted(bytes_of(window.work)), found.bytes.value, found.possible)
            told = {"window": f"{window.seconds:.1f} s, {len(window.passes)} passes"}
            yield ratio(
                numerator, denominator, n=len(window.passes), why_zero=NOTHING_MOVED, phase=phase, scope="physical",
                told=told,
            )  # fmt: skip

    return observe


def _share(counted: float, _: float, possible: float) -> tuple[float, float]:
    return counted, possible


def _error(counted: float, by_counter: float, _: float) -> tuple[float, float]:
    return counted - by_counter, by_counter


metric("counted_dram_utilisation", unit="share", direction="higher", needs=NEEDS)(
    _against_counter(lambda work: work.physical_bytes, _share)
)
metric("s_mbu_error", unit="share", direction="neither", needs=NEEDS)(
    _against_counter(lambda work: work.physical_bytes, _error)
)
metric("mbu_error", unit="share", direction="neither", needs=NEEDS)(
    _against_counter(lambda work: work.physical_bytes_all_experts, _error)
)
metric("mbu_min_bk_error", unit="share", direction="neither", needs=NEEDS)(
    _against_counter(lambda work: work.physical_bytes_min_bk, _error)
)


# ------------------------------------------------------------------------------------------------ tensor activity


@metric("tile_efficiency", unit="share", direction="higher", needs=NEEDS)
def tile_efficiency(run: RunView) -> Iterator[Observed]:
    """Time that the counted FLOPs take at the dense peak of their dtypes / time that tensor cores were active."""
    stretches: dict[str | None, Stretch | str] = {None: _invalid_in_window(run) or run.window_ns}
    for one, window in run.one_phase.items():
        stretches[one] = window if isinstance(window, str) else window.stretch
    for peaks in run.peaks:
        for phase, stretch in stretches.items():
            found = stretch if isinstance(stretch, str) else _busy_and_active_s(run, stretch, peaks.flops_per_s)
            if isinstance(found, str):
                yield Observed(missing=found, phase=phase, peak_source=peaks.source)
                continue
            busy_s, active = found
            yield ratio(
                busy_s, active.value or 0.0, n=active.n, why_zero=NO_ACTIVITY, phase=phase, peak_source=peaks.source
            )


def _busy_and_active_s(run: RunView, stretch: Stretch, peaks: Mapping[str, float]) -> tuple[float, Reading] | str:
    """Device seconds that the counted FLOPs take at their peaks, and those in which tensor cores were active."""
    active, flops = run.devices.increase("tensor_active_s", stretch), _flops_in(run, stretch)
    unknown = ", ".join(sorted(flops.keys() - peaks.keys()))
    if run.devices.is_sliced or active.value is None or unknown:
        return SLICED if run.devices.is_sliced else active.missing or f"no dense {unknown} peak"
    seconds = sum(amount / peaks[dtype] for dtype, amount in flops.items())
    return seconds * len(run.manifest.placement.device_uuids), active  # peaks are those of all devices together


def _flops_in(run: RunView, stretch: Stretch) -> dict[str, float]:
    """By dtype; of passes at the edges pro rata."""
    passes, shares = passes_in(run.run.passes, stretch)
    return {dtype: float(flops @ shares) for dtype, flops in pass_flops(run.shape, run.held, passes).items()}


def _invalid_in_window(run: RunView) -> str:
    """Why what was computed in the window isn't all counted; empty: it is."""
    passes = run.run.passes
    started, duration = (np.asarray(passes[name]) for name in ("started_ns", "duration_ns"))
    lies_in = (started < run.window_ns[1]) & (started + duration > run.window_ns[0])
    count = int((lies_in & ~np.asarray(passes["valid"])).sum())
    return f"{count} passes of the window are invalid, and what they computed is not counted" if count else ""
