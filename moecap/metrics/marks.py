"""What a reader of a point's numbers must know, in a few words each. It changes no number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from moecap.metrics.energy import DISAGREEMENT_LIMIT
from moecap.metrics.utilisation import OVERHEAD_SHARE
from moecap.records import Metric
from moecap.windows import LITTLE_LIMIT

UTILISATIONS = ("s_mbu", "s_mbu_physical", "s_mfu", "s_mbu_tier")


def marks_of(
    rows: Sequence[Metric], peak_source: str, flags: Mapping[str, str], checks_failed: Mapping[str, str]
) -> tuple[str, ...]:
    """Marks of a point from its rows, and from its runs' flags and failed checks."""
    found = [name.replace("_", " ") for name in flags]
    found += [f"check failed: {name}" for name in checks_failed]
    found += _from_rows([row for row in rows if row.value is not None and row.peak_source in (None, peak_source)])
    return tuple(dict.fromkeys(found))


def _from_rows(rows: Sequence[Metric]) -> Iterator[str]:
    for row in rows:
        value = row.value or 0.0
        phase = "" if row.phase is None else f" in {row.phase}"
        if row.metric == "overhead_share" and row.phase is None and value > OVERHEAD_SHARE:
            yield "overhead-bound"
        if row.metric in UTILISATIONS and value > 1:
            yield f"{row.metric} above 1{phase}: weights in a cache, or a peak that is too low"
        if row.metric == "little_law_error" and abs(value) > LITTLE_LIMIT:
            yield "concurrency not held"
        if row.metric == "energy_disagreement" and abs(value) > DISAGREEMENT_LIMIT:
            yield f"energy disagreement: integrated power is {value:+.1%} off the counter"
        if row.metric == "energy_j" and "short_energy_window" in json.loads(row.qualifiers):
            yield "short energy window"
        if row.metric == "throttled_share" and "reason" not in json.loads(row.qualifiers) and value > 0:
            yield f"throttled in {value:.0%} of the samples"
