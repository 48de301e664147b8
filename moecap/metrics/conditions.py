"""Metrics of the conditions that placed devices ran under: temperatures, clocks, and what held the clocks back.

They explain differences between runs and score nothing. Definitions: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.metrics.declare import Observed, metric, pooled, ratio
from moecap.metrics.view import RunView

HARMLESS = frozenset({"idle", "application clocks"})
"""Reasons that are no throttling: nothing ran, or clocks are where somebody set them."""
SAMPLED = {
    "temperature_c": "C", "memory_temperature_c": "C", "sm_clock_hz": "Hz", "memory_clock_hz": "Hz",
}  # fmt: skip
"""Quantity of a sample -> unit of the metric of the same name."""


def _inside(run: RunView, column: str) -> pa.Table:
    """Samples of placed devices in the window that have the quantity."""
    start_ns, end_ns = run.window_ns
    table = run.run.devices
    mine = pc.is_in(table["device_id"], value_set=pa.array(run.manifest.placement.device_uuids, pa.string()))
    in_time = pc.and_(pc.greater_equal(table["time_ns"], start_ns), pc.less_equal(table["time_ns"], end_ns))
    return table.filter(pc.and_(pc.and_(mine, in_time), pc.is_valid(table[column])))


def _observe(column: str) -> Callable[[RunView], Iterator[Observed]]:
    def observe(run: RunView) -> Iterator[Observed]:
        seen = _inside(run, column)[column].to_numpy().astype(np.float64)
        yield pooled(seen, why_empty=run.devices.why_unread(column))

    return observe


for _column, _unit in SAMPLED.items():
    metric(_column, unit=_unit, direction="neither", needs=("devices",))(_observe(_column))


@metric("throttled_share", unit="share", direction="lower", needs=("devices",))
def throttled_share(run: RunView) -> Iterator[Observed]:
    """Samples in which something held a device's clocks back, over all; then by reason."""
    seen = _inside(run, "throttle_reasons")["throttle_reasons"].combine_chunks()
    reasons, sample = pc.list_flatten(seen), pc.list_parent_indices(seen)
    harmful = pc.invert(pc.is_in(reasons, value_set=pa.array(sorted(HARMLESS))))
    total, why = len(seen), run.devices.why_unread("throttle_reasons")
    yield ratio(len(sample.filter(harmful).unique()), total, n=total, why_zero=why)
    for one in sorted(pc.value_counts(reasons.filter(harmful)).to_pylist(), key=lambda one: str(one["values"])):
        yield ratio(one["counts"], total, n=total, why_zero=why, qualifiers={"reason": one["values"]})
