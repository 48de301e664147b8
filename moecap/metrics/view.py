"""One recorded run as numpy columns, cut to its measurement window. It computes no metric.

What ends or comes out at the very start of the window was made before it: passes count when they are valid and end in
(start, end]; tokens by their time alike; requests when they were sent in [start, end].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.metrics.columns import NS, Bools, Ints, Passes, Requests, Routing, column, flat, passes_of, routing_of
from moecap.metrics.devices import PlacedDevices
from moecap.metrics.needs import Needs, needs_of
from moecap.metrics.one_phase import OnePhaseWindow, one_phase_windows
from moecap.metrics.work import PassWork, pass_work
from moecap.prices import Prices
from moecap.prices.node import Placed, placed_on
from moecap.records import CostSpec, LoadSpec, Manifest, Peaks, SloSpec
from moecap.store import RunData

PeakSource = Literal["catalogue", "calibrated"]


class RunView:
    """A run, its window and the prices that it is charged by."""

    def __init__(
        self, run: RunData, *, slo: SloSpec | None, cost: CostSpec, prices: Prices, peak_source: PeakSource
    ) -> None:
        self.run, self.prices = run, prices
        self.manifest: Manifest = run.manifest
        self.shape, self.held = run.manifest.shape, run.manifest.held
        self.peaks = _with_asked(run.manifest.peaks, peak_source)
        self.slo, self.cost = slo, cost

    def tier_bytes(self) -> dict[str, float]:
        """What the counted passes read from every memory tier."""
        return {tier: float(self.tier_reads(tier)[1].sum()) for tier in self.tier_names}

    @property
    def window_ns(self) -> tuple[int, int]:
        """Start and end of the measurement, from the first window to the last."""
        windows = self.manifest.windows
        return min(one.start_ns for one in windows), max(one.end_ns for one in windows)

    @property
    def window_s(self) -> float:
        """Length of it."""
        start_ns, end_ns = self.window_ns
        return (end_ns - start_ns) * NS

    def why_absent(self, need: str) -> str | None:
        """Why the run doesn't have what a metric needs (a table, or `chunk_tokens`); None: it does."""
        if need == "chunk_tokens":
            return None if (self.requests.chunk_tokens >= 0).all() else "the server doesn't say what its chunks hold"
        found: pa.Table = getattr(self.run, need)
        return None if len(found) else f"the run recorded no {need}"

    @property
    def load(self) -> LoadSpec | None:
        """The load that was measured: what was asked for, or found."""
        search = self.manifest.search
        return self.manifest.spec.point.load if search is None else search.load

    @property
    def observer(self) -> dict[str, str]:
        """Who took the times of requests, as a qualifier."""
        over_http = self.manifest.client is not None
        return {"observer": "client, over HTTP" if over_http else "engine boundary, in process"}

    @cached_property
    def passes(self) -> Passes:
        """Valid passes that end inside the window."""
        start_ns, end_ns = self.window_ns
        ends = pc.add(self.run.passes["started_ns"], self.run.passes["duration_ns"])
        inside = pc.and_(pc.greater(ends, start_ns), pc.less_equal(ends, end_ns))
        table = self.run.passes.filter(pc.and_(inside, self.run.passes["valid"]))
        return passes_of(table)

    @cached_property
    def routing(self) -> Routing:
        """Distinct experts of the counted passes."""
        return routing_of(self.run.routing, self.passes)

    @cached_property
    def replica_peaks(self) -> tuple[Peaks, ...]:
        """The peaks of one data-parallel replica: replicas run side by side, each on its share of the devices, and a
        pass is of one of them."""
        return tuple(_share(one, self.num_replicas) for one in self.peaks)

    @property
    def num_replicas(self) -> int:
        """Data-parallel replicas that ran passes at any time of the run."""
        return max(1, len(self.run.passes["replica"].unique()))

    @cached_property
    def work(self) -> PassWork:
        """Bytes and FLOPs of the counted passes."""
        return pass_work(self.shape, self.held, self.passes, self.routing)

    @cached_property
    def devices(self) -> PlacedDevices:
        """What the placed devices' samples say."""
        return PlacedDevices(self.run)

    @cached_property
    def one_phase(self) -> Mapping[str, OnePhaseWindow | str]:
        """Phase -> the window in which hardware counters are held against what was counted, or why there is none."""
        return one_phase_windows(self.run, self.devices)

    @cached_property
    def needs(self) -> Needs | None:
        """What the counted passes needed of the hardware; None without any."""
        if len(self.passes) == 0:
            return None
        return needs_of(self.shape, self.held, self.passes, self.work, self.num_replicas)

    @cached_property
    def placed(self) -> Placed:
        """The placement's share of its node, in priced parts."""
        return placed_on(self.manifest.node, self.manifest.placement, self.prices)

    @cached_property
    def expert_tokens(self) -> Ints:
        """Real tokens per (MoE layer, expert) over the counted passes."""
        ids = pa.array(self.passes.pass_id, pa.int64())
        table = self.run.routing.filter(pc.is_in(self.run.routing["pass_id"], value_set=ids))
        layers, totals = self.routing.layers, []
        for layer in layers:
            counts = table.filter(pc.equal(table["layer"], int(layer)))["counts"]
            totals.append(flat(counts)[0].reshape(len(counts), -1).sum(axis=0))
        return np.array(totals, dtype=np.int64)

    @cached_property
    def tier_names(self) -> list[str]:
        """Memory tiers that passes read from."""
        return sorted(set(self.run.tiers["tier"].to_pylist()))

    def tier_reads(self, tier: str) -> tuple[Ints, Ints]:
        """Index of each counted pass that has a record of the tier, and the bytes that it read there."""
        table = self.run.tiers.filter(pc.equal(self.run.tiers["tier"], tier))
        at = {int(pass_id): index for index, pass_id in enumerate(self.passes.pass_id)}
        pairs = zip(column(table, "pass_id").tolist(), column(table, "bytes_read").tolist(), strict=True)
        kept = [(at[pass_id], bytes_read) for pass_id, bytes_read in pairs if pass_id in at]
        return np.array([row for row, _ in kept], dtype=np.int64), np.array([read for _, read in kept], dtype=np.int64)

    @cached_property
    def requests(self) -> Requests:
        """All recorded requests, whenever they were sent."""
        table = self.run.requests
        chunk_ns, chunk_row = flat(table["chunk_ns"])
        return Requests(
            scheduled_ns=column(table, "scheduled_ns"), sent_ns=column(table, "sent_ns"),
            first_token_ns=column(table, "first_token_ns"), end_ns=column(table, "end_ns"),
            input_tokens=column(table, "input_tokens"), output_tokens=column(table, "output_tokens"),
            ok=np.array(table["status"].to_pylist(), dtype=np.str_) == "ok",
            chunk_ns=chunk_ns, chunk_tokens=flat(table["chunk_tokens"])[0], chunk_row=chunk_row,
        )  # fmt: skip

    def inside(self, times_ns: Ints) -> Bools:
        """Which results came inside the window: after its start, up to its end."""
        start_ns, end_ns = self.window_ns
        found: Bools = (times_ns > start_ns) & (times_ns <= end_ns)
        return found

    @cached_property
    def sent_inside(self) -> Bools:
        """Which requests were sent inside the window, at its ends included: sending the last planned one closes it."""
        start_ns, end_ns = self.window_ns
        found: Bools = (self.requests.sent_ns >= start_ns) & (self.requests.sent_ns <= end_ns)
        return found


def _share(peaks: Peaks, count: int) -> Peaks:
    """A `count`-th of every rate."""
    rate = peaks.memory_bytes_per_s
    return replace(
        peaks,
        memory_bytes_per_s=None if rate is None else rate / count,
        flops_per_s={dtype: flops / count for dtype, flops in peaks.flops_per_s.items()},
        tier_bytes_per_s={tier: one / count for tier, one in peaks.tier_bytes_per_s.items()},
    )


def _with_asked(known: tuple[Peaks, ...], asked: PeakSource) -> tuple[Peaks, ...]:
    """The known peaks, and an unknown one for the source that the study asked for, so that its metrics say so."""
    if any(one.source == asked for one in known):
        return known
    nothing = Peaks(
        source=asked, memory_bytes_per_s=None, flops_per_s={}, method=f"no {asked} peaks of this hardware are known"
    )
    return (*known, nothing)
