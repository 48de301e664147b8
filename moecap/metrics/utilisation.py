"""Metrics of the performance axis that relate passes to what the hardware could do: S-MBU, S-MFU, overhead.

Definitions: docs/metrics.md. Every ratio is one of sums over the counted passes of a window; a pass of a data-parallel
replica is held against that replica's share of the peaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moecap.metrics.columns import NO_PASSES, PHASES, Floats
from moecap.metrics.declare import Observed, metric, ratio
from moecap.metrics.view import RunView
from moecap.records import Peaks

PASSES = ("passes", "routing")
OVERHEAD_SHARE = 0.5
"""A phase is called overhead-bound when neither bytes nor FLOPs account for more than 1 - this of its time."""


def _against_bandwidth(run: RunView, bytes_read: Floats, scope: str | None) -> Iterator[Observed]:
    """sum(bytes) / sum(t_p) / B_peak per phase and peak source."""
    for peaks in run.replica_peaks:
        for phase in PHASES:
            key: dict[str, Any] = {"phase": phase, "scope": scope, "peak_source": peaks.source}
            where = run.passes.where(phase)
            if peaks.memory_bytes_per_s is None:
                yield Observed(missing=f"peak memory bandwidth is unknown ({peaks.method})", **key)
                continue
            possible = run.passes.duration_s[where].sum() * peaks.memory_bytes_per_s
            yield ratio(bytes_read[where].sum(), possible, n=int(where.sum()), why_zero=NO_PASSES, **key)


@metric("s_mbu", unit="share", direction="higher", needs=PASSES)
def s_mbu(run: RunView) -> Iterator[Observed]:
    """Bytes of activated weights and KV per second of pass time, over peak bandwidth (arXiv 2412.07067)."""
    work = run.work
    yield from _against_bandwidth(run, work.weight_bytes + work.kv_bytes, "paper")


@metric("s_mbu_physical", unit="share", direction="higher", needs=PASSES)
def s_mbu_physical(run: RunView) -> Iterator[Observed]:
    """The same with everything that kernels read and write."""
    yield from _against_bandwidth(run, run.work.physical_bytes, "physical")


@metric("mbu", unit="share", direction="neither", needs=PASSES)
def mbu(run: RunView) -> Iterator[Observed]:
    """The same with every expert counted, as for a dense model: an overestimate."""
    work = run.work
    yield from _against_bandwidth(run, work.weight_bytes_all_experts + work.kv_bytes, "paper")


@metric("mbu_min_bk", unit="share", direction="neither", needs=PASSES)
def mbu_min_bk(run: RunView) -> Iterator[Observed]:
    """The same with min(tokens x top-k, E) experts per layer: an upper bound without routing records."""
    work = run.work
    yield from _against_bandwidth(run, work.weight_bytes_min_bk + work.kv_bytes, "paper")


@metric("s_mbu_tier", unit="share", direction="higher", needs=("passes", "tiers"))
def s_mbu_tier(run: RunView) -> Iterator[Observed]:
    """What passes read from a memory tier per second of pass time, over that tier's peak."""
    for tier, bytes_read in run.tier_bytes().items():
        for peaks in run.replica_peaks:
            key: dict[str, Any] = {"peak_source": peaks.source, "qualifiers": {"tier": tier}}
            peak = peaks.tier_bytes_per_s.get(tier)
            if peak is None:
                yield Observed(missing=f"peak bandwidth of {tier} is unknown ({peaks.method})", **key)
                continue
            possible = run.passes.duration_s.sum() * peak
            yield ratio(bytes_read, possible, n=len(run.passes), why_zero=NO_PASSES, **key)


@metric("s_mfu", unit="share", direction="higher", needs=PASSES)
def s_mfu(run: RunView) -> Iterator[Observed]:
    """sum over dtypes (FLOPs / dense peak of the dtype) / sum(t_p), per phase and peak source."""
    for peaks in run.replica_peaks:
        for phase in PHASES:
            where = run.passes.where(phase)
            unknown = sorted(run.work.flops.keys() - peaks.flops_per_s.keys())
            if unknown:
                why = f"no dense {', '.join(unknown)} peak ({peaks.method})"
                yield Observed(missing=why, phase=phase, peak_source=peaks.source)
                continue
            yield ratio(
                _compute_s(run, peaks)[where].sum(), run.passes.duration_s[where].sum(), n=int(where.sum()),
                why_zero=NO_PASSES, phase=phase, peak_source=peaks.source,
            )  # fmt: skip


@metric("overhead_share", unit="share", direction="lower", needs=PASSES)
def overhead_share(run: RunView) -> Iterator[Observed]:
    """Share of pass time that a perfect overlap of memory and compute at their peaks leaves unexplained:
    1 - sum(max(physical bytes / B_peak, FLOPs / F_peak)) / sum(t_p). For offloaded systems reads of tiers count."""
    for peaks in run.replica_peaks:
        unknown = run.work.flops.keys() - peaks.flops_per_s.keys()
        for phase in PHASES:
            key: dict[str, Any] = {"phase": phase, "peak_source": peaks.source}
            if peaks.memory_bytes_per_s is None or unknown:
                yield Observed(missing=f"peaks are unknown ({peaks.method})", **key)
                continue
            where = run.passes.where(phase)
            memory_s = run.work.physical_bytes / peaks.memory_bytes_per_s
            explained = np.maximum(np.maximum(memory_s, _compute_s(run, peaks)), _tier_s(run, peaks))
            total = run.passes.duration_s[where].sum()
            yield ratio(total - explained[where].sum(), total, n=int(where.sum()), why_zero=NO_PASSES, **key)


def _compute_s(run: RunView, peaks: Peaks) -> Floats:
    """Per pass: the time that its FLOPs take at the peak of their dtypes."""
    per_dtype = [flops / peaks.flops_per_s[dtype] for dtype, flops in run.work.flops.items()]
    total: Floats = np.sum(per_dtype, axis=0)
    return total


def _tier_s(run: RunView, peaks: Peaks) -> Floats:
    """Per pass: the time that reads of its tiers take at their peaks, where known."""
    total = np.zeros(len(run.passes))
    for name, peak in peaks.tier_bytes_per_s.items():
        rows, bytes_read = run.tier_reads(name)
        np.add.at(total, rows, bytes_read / peak)
    return total
