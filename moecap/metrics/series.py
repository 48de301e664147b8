"""One sampled quantity over time: what a counter rose by, and what a rate amounts to, over any stretch of it.

Between samples both are taken as linear; outside them nothing is made up. It knows no quantity's meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from moecap.metrics.columns import NS, Floats, Ints

Stretch = tuple[int, int]
"""Start and end, in ns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Readings in order of time; those that are null are left out."""

    times_ns: Ints
    values: Floats

    def covers(self, stretch: Stretch) -> bool:
        """Whether there is a reading at or before its start, and one at or after its end."""
        return len(self.times_ns) > 1 and self.times_ns[0] <= stretch[0] and self.times_ns[-1] >= stretch[1]

    def inside(self, stretch: Stretch) -> int:
        """Readings in it, at its ends too."""
        return int(((self.times_ns >= stretch[0]) & (self.times_ns <= stretch[1])).sum())

    @property
    def falls(self) -> bool:
        """Whether a value is below the one before: no counter then, or one that was set back."""
        return bool((np.diff(self.values) < 0).any())

    def increase(self, stretch: Stretch) -> float:
        """Of a counter, interpolated at both ends. The stretch must be covered."""
        start, end = self._at(np.array(stretch))
        return float(end - start)

    def integral(self, stretch: Stretch) -> float:
        """Of a rate, by trapezoids, value x seconds; the readings that bracket the stretch give its ends. It must be
        covered."""
        within = (self.times_ns > stretch[0]) & (self.times_ns < stretch[1])
        times = np.concatenate([[stretch[0]], self.times_ns[within], [stretch[1]]])
        values = self._at(times)
        return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(times)) * NS)

    @property
    def update_period_s(self) -> float | None:
        """Median time between readings at which the value had changed; None with fewer than two changes, or when each
        reading differs from the one before: then it changes at least as often as it was read."""
        changed = self.times_ns[1:][np.diff(self.values) != 0]
        if not 1 < len(changed) < len(self.times_ns) - 1:
            return None
        return float(np.median(np.diff(changed)) * NS)

    def _at(self, times_ns: Ints) -> Floats:
        # From the first reading on: as floats, times since boot in ns would lose some of their digits.
        first = self.times_ns[0]
        found: Floats = np.interp(times_ns - first, self.times_ns - first, self.values)
        return found


def series_of(table: pa.Table, column: str) -> Series:
    """A column of samples with its `time_ns`."""
    known = table.select(["time_ns", column]).filter(pc.is_valid(table[column])).sort_by("time_ns")
    return Series(times_ns=known["time_ns"].to_numpy(), values=known[column].to_numpy().astype(np.float64))
